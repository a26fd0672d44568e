"""Where finished chunks become frames: beside the engine's thread, so that the next tick need not wait."""

from __future__ import annotations

import itertools
import logging
import math
import queue
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TypeAlias

import torch

from worldcache.engine.parallel import settle_num_threads

Job: TypeAlias = Callable[[], None]

Later: TypeAlias = Callable[[Job, int], None]
"""Runs a job some time, those of a lower number first, and equal ones in the order they come."""

logger = logging.getLogger(__name__)


def run_now(job: Job, priority: int = 0) -> None:
    """In place of a thread of its own, where nothing else runs anyway."""
    job()


@dataclass(order=True)
class _Entry:
    """A job in its place in the line; without one the line ends."""

    priority: float
    number: int
    job: Job | None = field(default=None, compare=False)
    ready: torch.cuda.Event | None = field(default=None, compare=False)


class DecodeThread:
    """Runs jobs one after the other, urgent ones first. On CUDA it has a stream of its own.

    Its parallel operations are not: a second pool of workers on the same cores would make every operation of
    the engine's many times slower, as threads that outnumber the cores have to be woken each time.

    A job must have brought its results to the host when it returns.

    Args:
        device: of the tensors that the jobs read.
        name: of the thread.
    """

    def __init__(self, device: torch.device, name: str = "decode") -> None:
        self._device = device
        self._jobs: queue.PriorityQueue[_Entry] = queue.PriorityQueue()
        self._numbers = itertools.count()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._settled = threading.Event()

    def start(self) -> None:
        self._thread.start()
        self._settled.wait()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, job: Job, priority: int = 0) -> None:
        """Run ``job`` after all work that the caller has given to the device so far.

        Args:
            job: what to run.
            priority: jobs of a lower number go first, equal ones in the order they come.
        """
        ready = None
        if self._device.type == "cuda":
            try:
                ready = torch.cuda.Event()
                ready.record(torch.cuda.current_stream(self._device))
            except Exception:
                logger.exception("the device cannot be waited for")  # which the job will find out, too
        self._jobs.put(_Entry(priority, next(self._numbers), job, ready))

    def close(self, timeout: float | None = None) -> None:
        """Stop once every job has run; to be called after the last :meth:`submit`."""
        if self._thread.is_alive():
            self._jobs.put(_Entry(math.inf, next(self._numbers)))
            self._thread.join(timeout)

    @torch.inference_mode()
    def _run(self) -> None:
        settle_num_threads(1)
        self._settled.set()
        with self._own_stream():
            while (job := (entry := self._jobs.get()).job) is not None:
                try:
                    if entry.ready is not None:
                        entry.ready.wait(torch.cuda.current_stream(self._device))
                    job()
                except Exception:
                    logger.exception("what should have run beside the engine failed")
                del entry, job  # what a job refers to must not outlive it here

    def _own_stream(self) -> AbstractContextManager[object]:
        if self._device.type != "cuda":
            return nullcontext()
        return torch.cuda.stream(torch.cuda.Stream(self._device))
