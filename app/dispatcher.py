"""Between the routes and the engine: submit a rollout, follow its events, cancel it.

The routes know the protocol and not what is behind it. Here that is an engine thread of this process.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from typing import Protocol, TypeVar

import torch

from app.errors import Unavailable
from worldcache.core import RolloutEnded, RolloutEvent
from worldcache.engine.decode import DecodeThread
from worldcache.engine.engine import Engine, Limits, Tick
from worldcache.engine.rollout import Rollout, RolloutRequest
from worldcache.engine.thread import EngineThread
from worldcache.models.base import WorldModel

ResultT = TypeVar("ResultT")


class Job(Protocol):
    """A rollout that was accepted."""

    def events(self) -> AsyncIterator[RolloutEvent]:
        """Its events in order; the last one is :class:`RolloutEnded`."""

    def cancel(self) -> None:
        """Ask for it to end; the device is free after the backbone call in flight."""


class Dispatcher(Protocol):
    """Runs rollouts somewhere."""

    @property
    def live(self) -> int:
        """Rollouts that were accepted and have not ended."""

    def submit(self, model: WorldModel, request: RolloutRequest) -> Job:
        """Accept a rollout.

        Raises:
            Unavailable: 503 while the queue is full.
        """


class InProcessJob:
    """A rollout on this process's engine thread. Its events cross to the event loop one by one."""

    def __init__(self, thread: EngineThread, ended: Callable[[], None]) -> None:
        self._thread, self._ended = thread, ended
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[RolloutEvent] = asyncio.Queue()
        self._rollout: Rollout | None = None

    def start(self, model: WorldModel, request: RolloutRequest) -> None:
        self._rollout = self._thread.submit(model, request, self._hear)

    def _hear(self, event: RolloutEvent) -> None:
        """Runs on the engine's thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._deliver, event)

    def _deliver(self, event: RolloutEvent) -> None:
        if isinstance(event, RolloutEnded):
            self._ended()
        self._queue.put_nowait(event)

    async def events(self) -> AsyncIterator[RolloutEvent]:
        while True:
            event = await self._queue.get()
            yield event
            if isinstance(event, RolloutEnded):
                return

    def cancel(self) -> None:
        assert self._rollout is not None
        if self._thread.alive:
            self._thread.cancel(self._rollout)


def _make_thread(device: str, limits: Limits, observer: Callable[[Tick], None]) -> EngineThread:
    decoder = DecodeThread(torch.device(device), name=f"decode-{device}")
    return EngineThread(Engine(limits, observer, decoder.submit), decoder, name=f"engine-{device}")


class InProcessDispatcher:
    """Runs rollouts on the engine threads of this process, one for each device.

    Args:
        devices: names, as torch spells those of the models.
        limits: of each engine.
        max_queue: most rollouts that wait behind the active ones.
        retry_after: seconds that a refused client is asked to wait.
        observer: told of every tick, on the engine's thread.
    """

    def __init__(
        self,
        devices: Sequence[str],
        *,
        limits: Limits,
        max_queue: int,
        retry_after: int,
        observer: Callable[[Tick], None],
    ) -> None:
        self._threads = {device: _make_thread(device, limits, observer) for device in devices}
        self._capacity, self._retry_after = limits.max_active + max_queue, retry_after
        self._live = 0

    def start(self) -> None:
        for thread in self._threads.values():
            thread.start()

    @property
    def devices(self) -> tuple[str, ...]:
        return tuple(self._threads)

    @property
    def alive(self) -> bool:
        return all(thread.alive for thread in self._threads.values())

    @property
    def live(self) -> int:
        return self._live

    def call(self, device: str, function: Callable[[], ResultT]) -> Future[ResultT]:
        """Run ``function`` where torch runs for a device."""
        return self._threads[device].call(function)

    def submit(self, model: WorldModel, request: RolloutRequest) -> Job:
        if self._live >= self._capacity:
            raise Unavailable(
                "queue_full", "the server is full; try again later", retry_after=self._retry_after
            )
        job = InProcessJob(self._threads[str(model.device)], self._one_less)
        self._live += 1
        job.start(model, request)
        return job

    def _one_less(self) -> None:
        self._live -= 1

    def close(self, timeout: float) -> None:
        """Stop the threads; blocks for as long as the backbone calls in flight, so not on the event loop."""
        for thread in self._threads.values():
            thread.close(timeout)
