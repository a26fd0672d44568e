"""How many threads the host computes with: all of them in the backbone, one everywhere else.

What the engine does between two backbone calls works on a few hundred kilobytes. Shared among threads such
an operation mostly waits for them to start and to meet again, twice as long as one thread takes for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def settle_num_threads(count: int) -> None:
    """Give the calling thread its number of threads for parallel operations.

    Torch keeps the number for each thread, but takes it from the latest call anywhere when a thread first
    asks; so threads that call this are started one after the other.
    """
    torch.set_num_threads(count)
    torch.get_num_threads()


@contextmanager
def num_threads(count: int) -> Iterator[int]:
    """Let the calling thread's operations use ``count`` threads until the block ends.

    Yields:
        How many they used before.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield before
    finally:
        torch.set_num_threads(before)
