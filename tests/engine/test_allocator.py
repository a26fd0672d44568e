"""Freed memory is used again: in a process of its own, since the setting holds for all of it."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

TOUCH = """
import resource, sys, threading
from worldcache.engine.allocator import keep_freed_memory
import torch
if sys.argv[1] == "keep":
    assert keep_freed_memory()
torch.set_num_threads(1)

def work():
    for _ in range(50):
        one, other = torch.ones(2_000_000), torch.ones(1_000_000)  # 12 MB, there already the other 49 times

work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
thread = threading.Thread(target=work)
thread.start()
thread.join()
sys.stdout.write(str(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before))
"""


def faults(mode: str) -> int:
    """Page faults of a thread that makes and drops the same tensors fifty times."""
    done = subprocess.run(
        [sys.executable, "-c", TOUCH, mode], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_a_threads_freed_memory_is_used_again() -> None:
    assert faults("keep") < 0.75 * faults("leave")
