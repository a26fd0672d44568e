"""How many threads the host computes with: all of them in the backbone, one or all everywhere else.

What the engine does between two backbone calls works on a few hundred kilobytes at a time. Shared among
threads such an operation takes half as long on some machines; on others it mostly waits for the threads to
start and to meet again, and takes twice as long. So an engine's thread tries it before it begins.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

import torch

SQUARE, LATENT, LATENTS, TRIES = 768, 2**16, 8, 15
"""Of the trial: side of the large matrix, numbers in a latent, latents, and how often each is timed."""

CLEARLY = 0.85
"""Share of one thread's time below which several are taken: others want the cores as well."""


def settle_num_threads(count: int) -> None:
    """Give the calling thread its number of threads for parallel operations.

    Torch keeps the number for each thread, but takes it from the latest call anywhere when a thread first
    asks; so threads that call this are started one after the other.
    """
    torch.set_num_threads(count)
    torch.get_num_threads()


def quicker_num_threads(most: int) -> int:
    """Which is quicker between two backbone calls, 1 thread or ``most``; takes a tenth of a second.

    Both are timed in turns on what a tick does: something large with all threads, then additions of a few
    latents with the number that is tried.
    """
    if most == 1:
        return 1
    square = torch.ones(SQUARE, SQUARE)
    pairs = [(torch.ones(LATENT), torch.ones(LATENT)) for _ in range(LATENTS)]
    seconds: dict[int, list[float]] = {1: [], most: []}
    for _ in range(TRIES):
        for count, taken in seconds.items():
            with num_threads(most):
                square @ square
            with num_threads(count):
                began = time.perf_counter()
                for one, other in pairs:
                    torch.add(one, other, alpha=0.5)
                taken.append(time.perf_counter() - began)
    return most if median(seconds[most]) < CLEARLY * median(seconds[1]) else 1


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
