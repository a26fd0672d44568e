"""Between the routes and the engine: submit a rollout, follow its events, cancel it, say what it would take.

The routes know the protocol and not what is behind it. Here that is one engine thread for each device of
this process.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from typing import Protocol, TypeVar

import torch

from app.errors import ApiError, Unavailable
from worldcache.core import ChunkFinished, RolloutEnded, RolloutEvent, RolloutStarted, RolloutStats
from worldcache.engine.cost import CostModel, Work
from worldcache.engine.decode import DecodeThread
from worldcache.engine.engine import Engine, Limits, Tick
from worldcache.engine.rollout import Priority, Rollout, RolloutRequest
from worldcache.engine.thread import EngineThread
from worldcache.models.base import WorldModel
from worldcache.policies.registry import AnyPolicy

logger = logging.getLogger(__name__)

UNCACHED = "none"
"""The policy that computes every step."""

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
            Unavailable: 503 while the line is full.
            ApiError: 429 while the client's own part of it is.
        """

    def expect(self, model: WorldModel, request: RolloutRequest, full_steps: float) -> float | None:
        """Seconds until a rollout would end if it came now, with so many FULL steps a chunk.

        ``None`` while nothing is known of the model.
        """

    def call(self, device: str, function: Callable[[], ResultT]) -> Future[ResultT]:
        """Run a function where torch runs for a device."""

    def full_steps(self, model: WorldModel, request: RolloutRequest) -> float:
        """FULL steps a chunk that the request's policy is expected to take; all of them if unknown."""

    def known_full_steps(self, model: WorldModel, request: RolloutRequest) -> float | None:
        """The same, if it follows from the policy or from a rollout that took it."""


class FullShares:
    """Share of FULL steps by model and policy, as finished rollouts had it.

    Args:
        most: choices of parameters that are remembered, the latest used ones.
    """

    def __init__(self, most: int = 256) -> None:
        self._most = most
        self._shares: OrderedDict[tuple[str, str, str], float] = OrderedDict()

    def learn(self, model: str, policy: AnyPolicy, stats: RolloutStats) -> None:
        """Remember what a finished rollout took."""
        key = _key(model, policy)
        self._shares[key] = 1 - stats.skip_ratio
        self._shares.move_to_end(key)
        if len(self._shares) > self._most:
            self._shares.popitem(last=False)

    def get(self, model: str, policy: AnyPolicy) -> float | None:
        """The latest share, if any is known."""
        return self._shares.get(_key(model, policy))


def _key(model: str, policy: AnyPolicy) -> tuple[str, str, str]:
    return model, policy.name, policy.config.model_dump_json()


class InProcessJob:
    """A rollout on this process's engine thread. Its events cross to the event loop one by one.

    Attributes:
        request: what was asked for.
        started: whether it has left the line.
    """

    def __init__(
        self,
        thread: EngineThread,
        work: Work,
        chunks: int,
        ended: Callable[[InProcessJob, RolloutEnded], None],
    ) -> None:
        self._thread, self._ended = thread, ended
        self._work, self._chunks, self._chunks_done = work, chunks, 0
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[RolloutEvent] = asyncio.Queue()
        self._rollout: Rollout | None = None
        self.started = False

    def start(self, model: WorldModel, request: RolloutRequest) -> None:
        self.request = request
        self._rollout = self._thread.submit(model, request, self._hear)

    @property
    def work(self) -> Work:
        """What is left of it, chunk by chunk."""
        left = 1 - self._chunks_done / self._chunks
        return Work(self._work.model, self._work.rows, self._work.calls * left)

    def _hear(self, event: RolloutEvent) -> None:
        """Runs on the engine's threads."""
        try:
            self._loop.call_soon_threadsafe(self._deliver, event)
        except RuntimeError:  # the loop has been closed
            logger.debug("nobody is left to hear of a rollout")

    def _deliver(self, event: RolloutEvent) -> None:
        if isinstance(event, RolloutStarted):
            self.started = True
        elif isinstance(event, ChunkFinished):
            self._chunks_done += 1
        else:
            self._ended(self, event)
            self._rollout = None  # which refers to this
        self._queue.put_nowait(event)

    async def events(self) -> AsyncIterator[RolloutEvent]:
        while True:
            event = await self._queue.get()
            yield event
            if isinstance(event, RolloutEnded):
                return

    def cancel(self) -> None:
        if self._rollout is not None and self._thread.alive:
            self._thread.cancel(self._rollout)


class _Lane:
    """One device: its threads, what its ticks take, what runs and waits there, in order of arrival."""

    def __init__(self, device: str, limits: Limits, observer: Callable[[Tick], None]) -> None:
        self.cost = CostModel()

        def observe(tick: Tick) -> None:
            self.cost.observe(tick)
            observer(tick)

        decoder = DecodeThread(torch.device(device), name=f"decode-{device}")
        engine = Engine(limits, observe, decoder.submit)
        self.thread = EngineThread(engine, decoder, name=f"engine-{device}")
        self.jobs: list[InProcessJob] = []

    @property
    def wanted(self) -> list[InProcessJob]:
        """The rollouts that somebody waits for; idle ones hold nobody up."""
        return [job for job in self.jobs if job.request.priority < Priority.IDLE]

    @property
    def running(self) -> list[Work]:
        """What is left of those that run."""
        return [job.work for job in self.wanted if job.started]

    def line_with(self, request: RolloutRequest, work: Work) -> tuple[list[Work], int]:
        """What waits, in the order in which it will be served, with one more request; and that one's place.

        The urgent go first, and among equals clients take turns, as in the engine's line.
        """
        waiting = [(job.request, job.work) for job in self.wanted if not job.started] + [(request, work)]
        turns: Counter[tuple[Priority, str]] = Counter()
        order: list[tuple[Priority, int, int]] = []
        for number, (one, _) in enumerate(waiting):
            order.append((one.priority, turns[one.priority, one.client], number))
            turns[one.priority, one.client] += 1
        numbers = [number for _, _, number in sorted(order)]
        return [waiting[number][1] for number in numbers], numbers.index(len(waiting) - 1)


class InProcessDispatcher:
    """Runs rollouts on the engine threads of this process, one for each device.

    Args:
        devices: names, as torch spells those of the models.
        limits: of each engine.
        max_queue: most rollouts on a device that wait behind the active ones.
        max_per_client: most rollouts of one client, waiting or active.
        limit_of: a client's own number in its place, if it has one.
        retry_after: seconds that a refused client is asked to wait while nothing has been measured.
        observer: told of every tick, on the engine's thread.
    """

    def __init__(
        self,
        devices: Sequence[str],
        *,
        limits: Limits,
        max_queue: int,
        max_per_client: int,
        retry_after: int,
        observer: Callable[[Tick], None],
        limit_of: Callable[[str], int | None] = lambda client: None,
    ) -> None:
        self._limit_of = limit_of
        self._lanes = {device: _Lane(device, limits, observer) for device in devices}
        self._limits, self._capacity = limits, limits.max_active + max_queue
        self._max_per_client, self._retry_after = max_per_client, retry_after
        self._by_client: Counter[str] = Counter()
        self._shares = FullShares()

    def start(self) -> None:
        for lane in self._lanes.values():
            lane.thread.start()

    @property
    def devices(self) -> tuple[str, ...]:
        return tuple(self._lanes)

    @property
    def alive(self) -> bool:
        return all(lane.thread.alive for lane in self._lanes.values())

    @property
    def live(self) -> int:
        return sum(len(lane.jobs) for lane in self._lanes.values())

    def call(self, device: str, function: Callable[[], ResultT]) -> Future[ResultT]:
        return self._lanes[device].thread.call(function)

    def submit(self, model: WorldModel, request: RolloutRequest) -> Job:
        lane = self._lanes[str(model.device)]
        if request.priority < Priority.IDLE:
            self._check_room(lane, request.client)
        chunks = model.info.chunks(len(request.actions))
        work = _work(model, request, chunks * self.full_steps(model, request))

        def ended(job: InProcessJob, event: RolloutEnded) -> None:
            lane.jobs.remove(job)
            self._by_client -= Counter([request.client])
            if event.status == "succeeded" and request.pace is None:  # a pace changes the policy on the way
                self._shares.learn(model.info.id, request.policy, event.stats)

        job = InProcessJob(lane.thread, work, chunks, ended)
        job.start(model, request)
        lane.jobs.append(job)  # what it hears comes later, on this loop
        self._by_client[request.client] += 1
        return job

    def expect(self, model: WorldModel, request: RolloutRequest, full_steps: float) -> float | None:
        lane = self._lanes[str(model.device)]
        mine = _work(model, request, model.info.chunks(len(request.actions)) * full_steps)
        running = lane.running
        line, place = lane.line_with(request, mine)
        ends = lane.cost.end_times(running, line, self._limits)
        return None if ends is None else ends[len(running) + place]

    def full_steps(self, model: WorldModel, request: RolloutRequest) -> float:
        known = self.known_full_steps(model, request)
        return float(request.num_inference_steps) if known is None else known

    def known_full_steps(self, model: WorldModel, request: RolloutRequest) -> float | None:
        steps, policy = request.num_inference_steps, request.policy
        budget = steps if policy.name == UNCACHED else getattr(policy.config, "full_steps", None)
        if budget is not None:
            return float(min(budget, steps))
        share = self._shares.get(model.info.id, policy)
        return None if share is None else steps * share

    def close(self, timeout: float) -> None:
        """Stop the threads; blocks for as long as the backbone calls in flight, so not on the event loop."""
        for lane in self._lanes.values():
            lane.thread.close(timeout)

    def _check_room(self, lane: _Lane, client: str) -> None:
        """Refuse what the line, or the client's part of it, has no room for."""
        if len(lane.wanted) >= self._capacity:
            message = "the server is full; try again later"
            raise Unavailable("queue_full", message, retry_after=self._seconds_until_room(lane))
        limit = self._limit_of(client) or self._max_per_client
        if self._by_client[client] >= limit:
            raise ApiError(
                429,
                "too_many_rollouts",
                f"at most {limit} rollouts of one client at a time; wait for some to end",
                headers={"Retry-After": str(self._seconds_until_room(lane))},
            )

    def _seconds_until_room(self, lane: _Lane) -> int:
        """When the first of those that run is expected to end, for Retry-After."""
        ends = lane.cost.end_times(lane.running, (), self._limits)
        if not ends:
            return self._retry_after
        return max(self._retry_after, math.ceil(min(ends)))


def _work(model: WorldModel, request: RolloutRequest, calls: float) -> Work:
    return Work(model.info.id, request.branches, calls)
