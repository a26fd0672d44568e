"""Takes rollouts off the stream and has them run here, as many as there is room for."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from app.errors import Unavailable
from app.metrics import Metrics
from app.redis.link import Link
from app.redis.store import RedisStore
from app.redis.tasks import end_tasks
from app.redis.work import RedisQueue, Taken
from app.rollouts import RolloutService
from app.store import LeaseLost, RolloutRecord, StoreDown
from worldcache.core import RolloutStats

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""Between two looks at the stream, if nothing is heard of it."""

REST_SECONDS = 2.0
"""How long a rollout that could not be run is left alone at first; then twice as long, and so on."""


class Worker:
    """Runs what was accepted, by whomever.

    Args:
        service: runs rollouts.
        room: how many more could be computed here at once.
        lease_seconds: silence after which others' rollouts are taken over.
    """

    def __init__(
        self,
        link: Link,
        store: RedisStore,
        queue: RedisQueue,
        service: RolloutService,
        metrics: Metrics,
        room: Callable[[], int],
        lease_seconds: float,
    ) -> None:
        self._link, self._store, self._queue = link, store, queue
        self._service, self._metrics, self._room = service, metrics, room
        self._lease_seconds = lease_seconds
        self._running: dict[str, tuple[Taken, asyncio.Task[None]]] = {}
        self._make_way = False
        self._wake = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._loop = asyncio.create_task(self._keep_taking())

    def wake(self) -> None:
        """There may be work."""
        self._wake.set()

    def lose(self, rollout_id: str) -> None:
        """A rollout is another process's now, or was ended."""
        if not self._service.lose(rollout_id) and rollout_id in self._running:
            self._running[rollout_id][1].cancel()

    async def close(self) -> None:
        """Take nothing more, and let go of what is still being prepared."""
        if self._loop is not None:
            await end_tasks([self._loop])
        await end_tasks([task for _, task in self._running.values()])

    async def _keep_taking(self) -> None:
        while not self._service.draining:
            self._wake.clear()
            try:
                await self._take()
            except StoreDown:
                logger.debug("no work is taken while Redis is away")
            except Exception:
                logger.exception("no work could be taken")
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), LOOK_SECONDS)

    async def _take(self) -> None:
        most = self._free()
        if most <= 0:
            return
        taken, self._make_way = await self._queue.take(
            most,
            alone=not self._running,
            reclaim=self._link.steady(self._lease_seconds),
            mine=[*self._running],
        )
        for one in taken:
            task = asyncio.create_task(self._carry_out(one))
            self._running[one.rollout_id] = (one, task)
            task.add_done_callback(partial(self._done, one.rollout_id))

    def _free(self) -> int:
        """How many may be taken; one that must run alone is given way to."""
        if not self._running:
            return max(1, self._room())
        if self._make_way or any(taken.suspect for taken, _ in self._running.values()):
            return 0
        preparing = sum(not self._service.runs(rollout_id) for rollout_id in self._running)
        return self._room() - preparing

    def _done(self, rollout_id: str, task: asyncio.Task[None]) -> None:
        del self._running[rollout_id]  # the stream hands out nothing twice to those who have it
        self._wake.set()

    async def _carry_out(self, taken: Taken) -> None:
        """Run a rollout, or let go of it."""
        counts = True
        try:
            record = taken.record()
            held = self._store.held.hold(record, taken.token)
            if self._queue.spent(taken):
                held.parked = f"{taken.tries} tries without finishing another chunk"
                await self._park(record, held.parked)
                return
            if taken.takeover:
                record.takeovers += 1
                self._metrics.work_takeovers.inc()
                logger.warning("rollout %s is taken over behind chunk %d", record.id, len(record.chunks))
            await self._service.run_order(record, taken.order(), taken.checkpoint)
            if not record.live:
                return
            counts = False  # it was handed over, or it is others' already
        except LeaseLost:
            return
        except asyncio.CancelledError:
            counts = False
            raise
        except Unavailable as error:
            counts = not self._service.draining
            logger.warning("rollout %s cannot be run here: %s", taken.rollout_id, error)
        except Exception:
            logger.exception("rollout %s could not be begun", taken.rollout_id)
        finally:
            await self._let_go(taken, counts)

    async def _let_go(self, taken: Taken, counts: bool) -> None:
        """Let others take a rollout that has not ended and that is still this process's."""
        held = self._store.held.get(taken.rollout_id)
        if held is None or held.token != taken.token or not held.record.live:
            return
        rest = REST_SECONDS * 2**taken.tries if counts else 0.0
        with suppress(StoreDown):  # its silence says the same
            await self._store.held.settle(held)
            await self._queue.release(taken, counts=counts, rest_seconds=rest)
        self._store.held.drop(taken.rollout_id)

    async def _park(self, record: RolloutRecord, reason: str) -> None:
        """Give a rollout up for good, and keep its order for whoever wants to know why."""
        logger.error("rollout %s is parked: %s", record.id, reason)
        message = f"the rollout was parked after {reason}; it is kept with its request for the operators"
        record.error = {"code": "rollout_parked", "message": message}
        record.stats = RolloutStats(
            record.policy, tuple(record.chunks), record.queue_seconds, record.first_frame_seconds
        )
        record.status, record.finished_at = "failed", time.time()
        await self._store.save(record)
        self._metrics.work_parked.inc()
        self._metrics.rollout_ended(record.model, record.status, record.stats)
