"""Rollouts from request to artifacts: validate, submit, follow, keep."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from app.audit import Auditor, Choice
from app.auth import Caller
from app.deadlines import DeadlinePlanner
from app.dispatcher import Dispatcher, Job
from app.errors import ApiError, Unavailable
from app.follow import Follower
from app.metrics import Metrics
from app.models import ModelHost, ModelLease
from app.requests import RequestReader
from app.schemas import RolloutBody
from app.settings import Settings
from app.store import RolloutRecord, Store
from worldcache.engine.rollout import RolloutRequest
from worldcache.errors import InvalidInput
from worldcache.models.base import WorldModel
from worldcache.policies.registry import describe

logger = logging.getLogger(__name__)


@dataclass
class LiveRollout:
    """A rollout that has not ended.

    Attributes:
        task: follows the job's events.
        waiters: clients that wait for the end.
        detached: it was asked for asynchronously, so it goes on although nobody waits.
    """

    record: RolloutRecord
    job: Job
    task: asyncio.Task[None] = field(init=False)
    waiters: int = 0
    detached: bool = False
    _change: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    def changed(self) -> None:
        """The record has changed: wake everyone who waits for that."""
        self._change.set()
        self._change = asyncio.Event()

    async def change(self) -> None:
        """Return at the next change."""
        await self._change.wait()


class RolloutService:
    """Everything that the routes do with rollouts."""

    def __init__(
        self,
        settings: Settings,
        models: ModelHost,
        dispatcher: Dispatcher,
        store: Store,
        metrics: Metrics,
        auditor: Auditor,
    ) -> None:
        self._settings, self._models, self._auditor = settings, models, auditor
        self._dispatcher, self.store, self._metrics = dispatcher, store, metrics
        self._requests, self._follower = RequestReader(settings), Follower(store, metrics)
        self._deadlines = DeadlinePlanner(
            dispatcher, fewest=settings.deadline_min_full_steps, margin=settings.deadline_margin
        )
        self._live: dict[str, LiveRollout] = {}
        self.draining = False

    async def create(self, body: RolloutBody, caller: Caller, rollout_id: str | None = None) -> RolloutRecord:
        """Accept a rollout; it runs from here on.

        Raises:
            ApiError, InvalidInput: the request cannot be served; nothing was started.
        """
        try:
            self._check_open()
            patience = None
            if body.deadline_ms is not None:
                patience = max(0.0, caller.arrived + body.deadline_ms / 1000 - time.monotonic())
            lease = await self._models.lease(body.model, patience, caller.models)
            try:
                self._check_open()
                request, choice = await self._prepare(body, caller, lease.model)
                full_steps = self._dispatcher.full_steps(lease.model, request)
                expected = self._dispatcher.expect(lease.model, request, full_steps)
                job = self._dispatcher.submit(lease.model, request)
            except BaseException:
                lease.release()
                raise
        except (ApiError, InvalidInput) as error:
            self._metrics.rejected.labels(error.code).inc()
            raise
        record = RolloutRecord(
            id=rollout_id or new_rollout_id(),
            owner=caller.owner,
            model=body.model,
            policy=request.policy.name,
            seed=request.seed,
            frames=request.frame_count(lease.model.info),
            output=body.output,
            metadata=body.metadata,
            deadline_ms=body.deadline_ms,
            deadline_at=None if request.deadline is None else _wall_clock(request.deadline),
            chosen=None if request.deadline is None else describe(request.policy),
            replaced_preset=choice.replaced,
            expected_seconds=expected,
        )
        live = LiveRollout(record, job)
        self._live[record.id] = live
        live.task = asyncio.create_task(self._run(live, lease, request, choice))
        await self.store.add(record)
        return record

    async def wait(self, record: RolloutRecord) -> None:
        """Return once the rollout has ended."""
        live = self._live.get(record.id)
        if live is not None:
            await asyncio.shield(live.task)

    async def change(self, record: RolloutRecord) -> bool:
        """Return at the next change of the record; False at once if there will be none."""
        live = self._live.get(record.id)
        if live is None or not record.live:
            return False
        await live.change()
        return True

    @contextmanager
    def waiting(self, record: RolloutRecord) -> Iterator[None]:
        """Count as a client that waits for the end."""
        live = self._live.get(record.id)
        if live is None:
            yield
            return
        live.waiters += 1
        try:
            yield
        finally:
            live.waiters -= 1

    def detach(self, record: RolloutRecord) -> None:
        """Let a rollout go on although nobody waits for it."""
        live = self._live.get(record.id)
        if live is not None:
            live.detached = True

    def abandoned(self, record: RolloutRecord) -> bool:
        """True for a live rollout that nobody waits for and that was not asked for asynchronously."""
        live = self._live.get(record.id)
        return live is not None and not live.waiters and not live.detached

    async def cancel(self, record: RolloutRecord) -> None:
        """End a live rollout and wait until it has ended."""
        live = self._live.get(record.id)
        if live is not None:
            live.job.cancel()
            await asyncio.shield(live.task)

    async def drain(self, seconds: float) -> None:
        """Accept nothing more; let what runs finish for a while, then cancel it."""
        self.draining = True
        tasks = [live.task for live in self._live.values()]
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)
        for live in list(self._live.values()):
            await self.cancel(live.record)

    def _check_open(self) -> None:
        """Refuse new work once the server is about to stop; a model may have been waited for since."""
        if self.draining:
            raise Unavailable("draining", "the server is shutting down", retry_after=5)

    async def _prepare(
        self, body: RolloutBody, caller: Caller, model: WorldModel
    ) -> tuple[RolloutRequest, Choice]:
        """What will be run, and whose choice that was: the client's, the audits' or the deadline's."""
        choice = self._auditor.guard.choose(body.cache, model.info)
        served = body.model_copy(update={"cache": choice.cache})
        request = await self._requests.read(served, model.info, caller.client)
        if body.deadline_ms is None:
            return request, choice
        deadline, free = caller.arrived + body.deadline_ms / 1000, body.cache in (None, "auto")
        request = self._deadlines.plan(model, request, deadline, choose=free)
        return request, Choice(body.cache, None) if free else choice

    async def _run(
        self, live: LiveRollout, lease: ModelLease, request: RolloutRequest, choice: Choice
    ) -> None:
        """Follow a rollout to its end, then forget it and let go of its model."""
        try:
            await self._follower.follow(live.record, live.job, live.changed, request.deadline)
            await self._auditor.consider(live.record, request, choice.preset)
        finally:
            self._live.pop(live.record.id, None)
            lease.release()
            live.changed()


def _wall_clock(moment: float) -> float:
    """A moment by ``time.monotonic()`` in seconds since the epoch."""
    return time.time() + moment - time.monotonic()


def new_rollout_id() -> str:
    """A fresh id."""
    return f"ro_{uuid.uuid4().hex}"
