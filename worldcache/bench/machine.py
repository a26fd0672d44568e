"""The machine in words, for the head of a report."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch


def machine() -> str:
    """Processor, cores, torch and its threads."""
    names = [
        line.partition(":")[2].strip()
        for line in _read(Path("/proc/cpuinfo")).splitlines()
        if line.startswith("model name")
    ]
    processor = names[0] if names else platform.processor() or platform.machine()
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return (
        f"{processor}, {os.cpu_count()} cores{gpu}, torch {torch.__version__} "
        f"with {torch.get_num_threads()} threads"
    )


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""
