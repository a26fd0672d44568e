"""Where finished chunks become frames: beside the engine's thread, so that the next tick need not wait."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeAlias

import torch

from worldcache.engine.parallel import settle_num_threads

Job: TypeAlias = Callable[[], None]

DEPTH = 16
"""Jobs that may wait; whoever adds one more waits with them, so that latents do not pile up."""


def run_now(job: Job) -> None:
    """In place of a thread of its own, where nothing else runs anyway."""
    job()


class DecodeThread:
    """Runs jobs one after the other, in the order they came. On CUDA it has a stream of its own.

    Its parallel operations are not: a second pool of workers on the same cores would make every operation of
    the engine's many times slower, as threads that outnumber the cores have to be woken each time.

    A job must not raise, and must have brought its results to the host when it returns.

    Args:
        device: of the tensors that the jobs read.
        name: of the thread.
    """

    def __init__(self, device: torch.device, name: str = "decode") -> None:
        self._device = device
        self._jobs: queue.Queue[tuple[Job, torch.cuda.Event | None] | None] = queue.Queue(DEPTH)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._settled = threading.Event()

    def start(self) -> None:
        self._thread.start()
        self._settled.wait()

    def submit(self, job: Job) -> None:
        """Run ``job`` after all work that the caller has given to the device so far."""
        ready = None
        if self._device.type == "cuda":
            ready = torch.cuda.Event()
            ready.record(torch.cuda.current_stream(self._device))
        self._jobs.put((job, ready))

    def close(self, timeout: float | None = None) -> None:
        """Stop once every job has run; to be called after the last :meth:`submit`."""
        if self._thread.is_alive():
            self._jobs.put(None)
            self._thread.join(timeout)

    @torch.inference_mode()
    def _run(self) -> None:
        settle_num_threads(1)
        self._settled.set()
        with self._own_stream():
            while (entry := self._jobs.get()) is not None:
                job, ready = entry
                if ready is not None:
                    ready.wait(torch.cuda.current_stream(self._device))
                job()
                del entry, job, ready  # what a job refers to must not outlive it here

    def _own_stream(self) -> AbstractContextManager[object]:
        if self._device.type != "cuda":
            return nullcontext()
        return torch.cuda.stream(torch.cuda.Stream(self._device))
