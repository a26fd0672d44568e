"""Rollouts from request to artifacts: validate, submit, follow, keep."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from app.audit import Auditor, Choice
from app.auth import Caller
from app.dispatcher import Dispatcher, Job
from app.errors import ApiError, Unavailable
from app.follow import Follower
from app.live import LiveRollout
from app.metrics import Metrics
from app.models import ModelHost, ModelLease
from app.prepare import Prepared, Preparer
from app.schemas import RolloutBody
from app.settings import Settings
from app.store import Checkpoint, RolloutRecord, Store
from app.tracing import Tracing
from app.work import Order, WorkQueue, write_order
from worldcache.core import RolloutStats
from worldcache.engine.rollout import RolloutRequest
from worldcache.errors import InvalidInput
from worldcache.models.base import WorldModel
from worldcache.policies.registry import describe

logger = logging.getLogger(__name__)

ROOM_SECONDS = 0.25
"""Between two tries to hand in a rollout that was accepted long ago."""


class RolloutService:
    """Everything that the routes do with rollouts.

    Args:
        queue: where asynchronous rollouts wait for a process that runs them; ``None`` runs them here.
    """

    def __init__(
        self,
        settings: Settings,
        models: ModelHost,
        dispatcher: Dispatcher,
        store: Store,
        metrics: Metrics,
        auditor: Auditor,
        queue: WorkQueue | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self._models, self._auditor, self._queue = models, auditor, queue
        self._dispatcher, self.store, self._metrics = dispatcher, store, metrics
        self._preparer = Preparer(settings, dispatcher, auditor.guard)
        self._follower = Follower(store, metrics, tracing)
        self._live: dict[str, LiveRollout] = {}
        self._drained = asyncio.Event()
        self.draining = False

    async def create(
        self, body: RolloutBody, caller: Caller, rollout_id: str | None = None, *, later: bool = False
    ) -> RolloutRecord:
        """Accept a rollout; it runs from here on.

        Args:
            body: of the request.
            caller: who asks.
            rollout_id: for the new rollout; one is made up if it is left out.
            later: it was asked for asynchronously: it goes on although nobody waits, and with a queue it
                outlives this process.

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
                prepared = await self._preparer.prepare(body, caller, lease.model)
                record = self._begin_record(body, caller, lease.model, prepared, rollout_id)
                if later and self._queue is not None:
                    request, choice = prepared.request, prepared.choice
                    order = write_order(body, request, choice, caller.client, prepared.free)
                    await self._queue.offer(record, order)
                    lease.release()
                    return record
                job = self._dispatcher.submit(lease.model, prepared.request)
            except BaseException:
                lease.release()
                raise
        except (ApiError, InvalidInput) as error:
            self._metrics.rejected.labels(error.code).inc()
            raise
        live = LiveRollout(record, job, detached=later, paced=prepared.free)
        self._start(live, lease, prepared.request, prepared.choice)
        try:
            await self.store.add(record)
        except BaseException:
            job.cancel()
            raise
        return record

    async def run_order(self, record: RolloutRecord, order: Order, checkpoint: Checkpoint | None) -> None:
        """Run a rollout that was accepted before, by whomever, from its checkpoint on.

        Returns when it has ended, or when this process does not run it any more.

        Raises:
            Unavailable: it cannot be run here, but perhaps elsewhere.
            LeaseLost: it is another process's.
        """
        try:
            lease = await self._models.lease(record.model)
            try:
                request, chunks = await self._preparer.resume(record, order, checkpoint, lease.model)
                job = await self._hand_in(lease.model, request)
            except BaseException:
                lease.release()
                raise
        except Unavailable:
            raise
        except (ApiError, InvalidInput) as error:
            await self._follower.refuse(record, error)
            return
        record.resumed_chunks += chunks
        waited = max(0.0, time.time() - record.created_at)
        export = partial(self._preparer.export, lease.model)
        live = LiveRollout(
            record, job, detached=True, paced=order.free, waited=waited, first_chunk=chunks, export=export
        )
        self._start(live, lease, request, Choice(None, order.preset, record.replaced_preset))
        await asyncio.wait([live.task])

    def runs(self, rollout_id: str) -> bool:
        """Whether a rollout has been handed in here and has not ended."""
        return rollout_id in self._live

    def lose(self, rollout_id: str) -> bool:
        """Stop a rollout that others have now, or that somebody ended; False if it does not run here."""
        live = self._live.get(rollout_id)
        if live is None:
            return False
        live.lose()
        return True

    async def wait(self, record: RolloutRecord) -> None:
        """Return once the rollout has ended."""
        while record.live and await self.change(record):
            pass

    async def change(self, record: RolloutRecord) -> bool:
        """Return at the next change of the record; False at once if there will be none."""
        if not record.live:
            return False
        live = self._live.get(record.id)
        if live is None or live.record is not record:
            return await self._change_elsewhere(record)
        await live.change()
        return True

    async def _change_elsewhere(self, record: RolloutRecord) -> bool:
        """The same for a rollout that another process runs, for as long as this one serves anybody."""
        changing = asyncio.ensure_future(self.store.wait_changed(record))
        closing = asyncio.ensure_future(self._drained.wait())
        try:
            await asyncio.wait({changing, closing}, return_when=asyncio.FIRST_COMPLETED)
            return changing.done() and changing.result()
        finally:
            changing.cancel()
            closing.cancel()

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

    async def detach(self, record: RolloutRecord, body: RolloutBody, caller: Caller) -> None:
        """Let a rollout that was asked for synchronously go on although nobody waits for it.

        With a queue it is given to that, so that it outlives the process that runs it.

        Args:
            record: of the rollout.
            body: that it was asked for with, again.
            caller: who asks again.

        Raises:
            ApiError: it cannot be given to the queue.
        """
        live = self._live.get(record.id)
        if self._queue is None or not record.live:
            if live is not None:
                live.detached = True
            return
        lease = await self._models.lease(body.model, None, caller.models)
        try:
            again = body.model_copy(update={"seed": record.seed, "deadline_ms": None})
            prepared = await self._preparer.prepare(again, caller, lease.model)
        finally:
            lease.release()
        free = body.deadline_ms is not None and body.cache in (None, "auto")
        order = write_order(again, prepared.request, prepared.choice, caller.client, free)
        await self._queue.adopt(record, order)

    def abandoned(self, record: RolloutRecord) -> bool:
        """True for a live rollout that nobody waits for and that was not asked for asynchronously."""
        live = self._live.get(record.id)
        return live is not None and not live.waiters and not live.detached

    async def cancel(self, record: RolloutRecord) -> RolloutRecord:
        """End a live rollout, wherever it runs, and wait until it has ended.

        Returns:
            How it ended: not ``record`` if that was read before this process took the rollout over.

        Raises:
            Unavailable: it runs elsewhere, and nobody there can be told.
        """
        live = self._live.get(record.id)
        if live is not None:
            live.job.cancel()
            await asyncio.wait([live.task])
            if not live.record.live:
                return live.record
        if record.live:
            await self._end_elsewhere(record)
        return record

    async def _end_elsewhere(self, record: RolloutRecord) -> None:
        record.status, record.finished_at = "cancelled", time.time()
        record.stats = RolloutStats(
            record.policy, tuple(record.chunks), record.queue_seconds, record.first_frame_seconds
        )
        if await self.store.end(record):
            self._metrics.rollout_ended(record.model, record.status, record.stats)

    async def drain(self, seconds: float) -> None:
        """Accept nothing more; let what runs finish for a while, then let go of it.

        What others can go on with is left to them; the rest is cancelled.
        """
        self.draining = True
        tasks = [live.task for live in self._live.values()]
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)
        for live in list(self._live.values()):
            if live.export is not None:
                live.release()
            else:
                live.job.cancel()
        left = [live.task for live in self._live.values()]
        if left:
            await asyncio.wait(left)
        self._drained.set()

    def _check_open(self) -> None:
        """Refuse new work once the server is about to stop; a model may have been waited for since."""
        if self.draining:
            raise Unavailable("draining", "the server is shutting down", retry_after=5)

    def _begin_record(
        self,
        body: RolloutBody,
        caller: Caller,
        model: WorldModel,
        prepared: Prepared,
        rollout_id: str | None,
    ) -> RolloutRecord:
        request = prepared.request
        full_steps = self._dispatcher.full_steps(model, request)
        return RolloutRecord(
            id=rollout_id or new_rollout_id(),
            owner=caller.owner,
            model=body.model,
            policy=request.policy.name,
            seed=request.seed,
            frames=request.frame_count(model.info),
            output=body.output,
            metadata=body.metadata,
            deadline_ms=body.deadline_ms,
            deadline_at=None if request.deadline is None else _wall_clock(request.deadline),
            chosen=None if request.deadline is None else describe(request.policy),
            replaced_preset=prepared.choice.replaced,
            expected_seconds=self._dispatcher.expect(model, request, full_steps),
        )

    async def _hand_in(self, model: WorldModel, request: RolloutRequest) -> Job:
        """Submit a rollout as soon as there is room for it."""
        while True:
            self._check_open()
            try:
                return self._dispatcher.submit(model, request)
            except ApiError:  # the line, or the client's part of it, is full of what was asked for here
                await asyncio.sleep(ROOM_SECONDS)

    def _start(self, live: LiveRollout, lease: ModelLease, request: RolloutRequest, choice: Choice) -> None:
        self._live[live.record.id] = live
        live.task = asyncio.create_task(self._run(live, lease, request, choice))

    async def _run(
        self, live: LiveRollout, lease: ModelLease, request: RolloutRequest, choice: Choice
    ) -> None:
        """Follow a rollout to its end, then forget it and let go of its model."""
        try:
            await self._follower.follow(live, request.deadline)
            await self._auditor.consider(live.record, request, choice.preset)
        except Exception as error:
            logger.exception("rollout %s cannot be followed to its end", live.record.id)
            live.job.cancel()
            if live.record.live:
                await self._follower.refuse(live.record, error)
        finally:
            if self._live.get(live.record.id) is live:
                del self._live[live.record.id]
            lease.release()
            live.changed()


def _wall_clock(moment: float) -> float:
    """A moment by ``time.monotonic()`` in seconds since the epoch."""
    return time.time() + moment - time.monotonic()


def new_rollout_id() -> str:
    """A fresh id."""
    return f"ro_{uuid.uuid4().hex}"
