"""The memory of a device, and how much of it this process holds, for the metrics."""

from __future__ import annotations

import math
import re
from pathlib import Path

import torch

PROCESS = Path("/proc/self/status")
HOST = Path("/proc/meminfo")
LIMIT = Path("/sys/fs/cgroup/memory.max")
"""What a container may use, if it has a limit."""


def held_bytes(device: str) -> float:
    """What this process holds: resident memory for ``cpu``, what torch has reserved on a CUDA device.

    Asks no driver, so it waits for nothing. Not a number where nobody tells.
    """
    kind = torch.device(device).type
    if kind == "cpu":
        return _field(PROCESS, "VmRSS")
    return float(torch.cuda.memory_reserved(device)) if kind == "cuda" else math.nan


def total_bytes(device: str) -> float:
    """What the device has, or for ``cpu`` the container's limit if that is less."""
    kind = torch.device(device).type
    if kind == "cpu":
        return min(_field(HOST, "MemTotal"), _limit())
    if kind == "cuda" and torch.cuda.is_initialized():
        return float(torch.cuda.get_device_properties(device).total_memory)
    return math.nan


def _field(path: Path, name: str) -> float:
    """A field of one of the kernel's tables, given there in KiB."""
    if not path.exists():
        return math.nan
    found = re.search(rf"^{name}:\s+(\d+) kB$", path.read_text(), re.MULTILINE)
    return int(found[1]) * 1024.0 if found else math.nan


def _limit() -> float:
    text = LIMIT.read_text().strip() if LIMIT.exists() else "max"
    return float(text) if text.isdecimal() else math.inf
