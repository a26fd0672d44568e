"""Everything that a server does with Redis, from its start to its end."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
import uuid
from collections.abc import Callable

from app.artifacts import ArtifactStore
from app.metrics import Metrics
from app.redis.artifacts import RedisArtifacts
from app.redis.changes import Changes
from app.redis.holdings import Bounds
from app.redis.keys import Keys
from app.redis.limits import RedisRateLimiter
from app.redis.link import Link
from app.redis.sessions import RedisSnapshots
from app.redis.store import RedisStore
from app.redis.tasks import end_tasks
from app.redis.work import RedisQueue
from app.redis.worker import Worker
from app.rollouts import RolloutService
from app.settings import Settings
from app.store import RolloutRecord, StoreDown
from worldcache.core import RolloutStats

logger = logging.getLogger(__name__)

BEATS = 3
"""Signs of life in the time of a lease."""

SWEEP_SECONDS = 10.0
STRAY_SECONDS = 600.0


class RedisBackend:
    """The store and the queue of a server, and what keeps them going.

    Args:
        settings: say where Redis is.
        metrics: count.
        files: where artifacts go; in Redis if ``None``.
        limit_of: how many rollouts a client may have, if that is its own number.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        files: ArtifactStore | None,
        limit_of: Callable[[str], int | None] = lambda client: None,
    ) -> None:
        self._metrics, self._lease_seconds = metrics, settings.lease_seconds
        self.replica = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self.keys = Keys(settings.redis_prefix)
        self.link = Link(settings.redis_url, self.keys.prefix, self._told)
        bounds = Bounds(
            settings.store_max_rollouts,
            settings.store_max_bytes,
            settings.store_ttl_seconds,
            claim_seconds=settings.model_wait_seconds + 120,
            removed_seconds=10 * settings.lease_seconds,
        )
        blobs = files or RedisArtifacts(self.link, self.keys)
        self.store = RedisStore(self.link, self.keys, self.replica, blobs, bounds, lost=self._lost)
        self.queue = RedisQueue(
            self.link,
            self.replica,
            lease_seconds=settings.lease_seconds,
            tries=settings.work_tries,
            max_queue=settings.work_max_queue,
            max_per_client=settings.max_per_client,
            limit_of=limit_of,
        )
        self.limiter = RedisRateLimiter(self.link, self.keys)
        self.snapshots = RedisSnapshots(self.link, self.keys, self.replica)
        self._changes = Changes(self.link, self.keys, self._ended, self._news)
        self.store.changes = self._changes
        self._hurry = asyncio.Event()
        self._service: RolloutService | None = None
        self._worker: Worker | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def status(self) -> str:
        """For the readiness check."""
        return "ok" if self.link.up else "unreachable"

    async def start(self, service: RolloutService, room: Callable[[], int]) -> None:
        """Connect, or go on trying to; run what others have accepted.

        Args:
            service: runs it.
            room: how many more rollouts could be computed at once.
        """
        self._service = service
        self._worker = Worker(
            self.link, self.store, self.queue, service, self._metrics, room, self._lease_seconds
        )
        self.link.when_healed(self._heal)
        await self.link.start()
        self._changes.start()
        self._worker.start()
        self._tasks = [asyncio.create_task(self._keep_alive()), asyncio.create_task(self._keep_clean())]

    async def close(self) -> None:
        """Let go of everything; what has not ended is others' to go on with."""
        if self._worker is not None:
            await self._worker.close()
        await end_tasks(self._tasks)
        await self._changes.close()
        try:
            await self.store.held.write_back()
            await self.link.call("DEL", f"{self.keys.prefix}replica:{self.replica}")
        except StoreDown:
            logger.warning("Redis is away; others will find out by themselves that this server has ended")
        await self.link.close()

    def _told(self, up: bool) -> None:
        self._metrics.redis_up.set(int(up))

    def _news(self) -> None:
        if self._worker is not None:
            self._worker.wake()

    def _lost(self, rollout_id: str) -> None:
        if self._worker is not None:
            self._worker.lose(rollout_id)

    def _ended(self, rollout_id: str | None) -> None:
        """Somebody ended a rollout; if it is one of ours, find that out now."""
        if rollout_id is None or rollout_id in self.store.held:
            self._hurry.set()

    async def _heal(self) -> None:
        await self.store.held.beat(self._span_ms)
        await self.store.held.write_back()
        self._news()

    @property
    def _span_ms(self) -> int:
        return int(1000 * self._lease_seconds)

    async def _keep_alive(self) -> None:
        """Show that this process lives, several times a lease."""
        while True:
            try:
                self._hurry.clear()
                await self.store.held.beat(self._span_ms)
                self._metrics.work_backlog.set(await self.queue.length())
            except StoreDown:
                logger.debug("no sign of life while Redis is away")
            except Exception:
                logger.exception("no sign of life could be given")
            await self.store.held.write_back()
            try:
                await asyncio.wait_for(self._hurry.wait(), self._lease_seconds / BEATS)
            except TimeoutError:
                continue

    async def _keep_clean(self) -> None:
        """Let go of what is old, and of what dead processes have left."""
        strays_at = 0.0
        while True:
            await asyncio.sleep(min(SWEEP_SECONDS, self._lease_seconds))
            try:
                orphans = await self.store.sweep()
                if self.link.steady(2 * self._lease_seconds):
                    for rollout_id in orphans:
                        await self._bury(rollout_id)
                if time.monotonic() >= strays_at:
                    strays_at = time.monotonic() + STRAY_SECONDS
                    await self.store.clear_strays()
            except StoreDown:
                logger.debug("nothing is swept while Redis is away")
            except Exception:
                logger.exception("what is old could not be swept")

    async def _bury(self, rollout_id: str) -> None:
        """Fail a rollout that its client waited for at a server which has ended."""
        record = await self.store.get(rollout_id)
        if record is None or not record.live or rollout_id in self.store.held:
            return
        bury(record)
        if await self.store.end(record):
            logger.warning("rollout %s has failed: the server that ran it is gone", rollout_id)
            assert record.stats is not None
            self._metrics.rollout_ended(record.model, record.status, record.stats)


def bury(record: RolloutRecord) -> None:
    """Make a record say that its server has ended."""
    record.status, record.finished_at = "failed", time.time()
    record.error = {"code": "worker_lost", "message": "the server that ran the rollout has ended; ask again"}
    record.stats = RolloutStats(
        record.policy, tuple(record.chunks), record.queue_seconds, record.first_frame_seconds
    )
