"""A rollout while it runs: its events become the record, the frames in the store, the metrics."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from anyio import to_thread

from app.dispatcher import Job
from app.frames import chunk_name, join_chunks, pack_chunk
from app.media import to_npz
from app.metrics import Metrics
from app.store import NPZ, RolloutRecord, Store
from worldcache.core import ChunkFinished, RolloutEnded, RolloutStarted
from worldcache.errors import InvalidInput, WorldCacheError

logger = logging.getLogger(__name__)


class Follower:
    """Keeps records true to what happens."""

    def __init__(self, store: Store, metrics: Metrics) -> None:
        self._store, self._metrics = store, metrics

    async def follow(
        self, record: RolloutRecord, job: Job, changed: Callable[[], None], deadline: float | None = None
    ) -> None:
        """Keep the record true to the rollout's events until the last one.

        Args:
            record: of the rollout.
            job: where its events come from.
            changed: told after every change.
            deadline: by ``time.monotonic()``, which no change of the wall clock moves.
        """
        queued = self._metrics.queue_depth.labels(record.model)
        active = self._metrics.active_rollouts.labels(record.model)
        queued.inc()
        started = False
        trouble: Exception | None = None
        try:
            async for event in job.events():
                if isinstance(event, RolloutStarted):
                    started = True
                    queued.dec()
                    active.inc()
                    record.status, record.started_at = "running", time.time()
                    record.queue_seconds = event.queue_seconds
                    self._metrics.rollout_started(record.model, event.queue_seconds)
                elif isinstance(event, ChunkFinished):
                    if trouble is None and (trouble := await self._keep_chunk(record, event)):
                        job.cancel()
                else:
                    await self._finish(record, event, trouble, deadline)
                await self._store.save(record)
                changed()
        finally:
            (active if started else queued).dec()

    async def _keep_chunk(self, record: RolloutRecord, event: ChunkFinished) -> Exception | None:
        """Keep a chunk's frames, then tell of them; returns why it is impossible, if it is."""
        try:
            data = await to_thread.run_sync(pack_chunk, event.frames)
            await self._store.put_artifact(record.id, chunk_name(event.stats.index), data)
        except Exception as error:
            logger.exception("a chunk of rollout %s cannot be kept", record.id)
            return error
        count = len(next(iter(event.frames.values())))
        record.chunks.append(event.stats)
        record.chunk_ends.append(record.frames_done + count)
        self._metrics.chunk_finished(record.model, record.policy, event.stats, count)
        return None

    async def _finish(
        self, record: RolloutRecord, event: RolloutEnded, trouble: Exception | None, deadline: float | None
    ) -> None:
        """Write the last word on a rollout: statistics, error, frames.

        Args:
            record: of the rollout.
            event: its last one.
            trouble: why a chunk could not be kept.
            deadline: by ``time.monotonic()``.
        """
        status = event.status if trouble is None else "failed"
        error = trouble or event.error
        if error is not None:
            record.error = _public_error(error)
            logger.warning("rollout %s %s: %s", record.id, status, error)
        if status == "succeeded":
            try:
                await self._keep_frames(record)
            except Exception as failure:
                logger.exception("the frames of rollout %s cannot be kept", record.id)
                status, record.error = "failed", _public_error(failure)
        record.stats, record.finished_at = event.stats, time.time()
        if deadline is not None:
            record.deadline_met = status == "succeeded" and time.monotonic() <= deadline
        record.status = status
        self._metrics.rollout_ended(record.model, status, event.stats)

    async def _keep_frames(self, record: RolloutRecord) -> None:
        """Put the chunks' frames into one file."""
        names = [chunk_name(chunk) for chunk in range(len(record.chunks))]
        parts = [await self._store.get_artifact(record.id, name) for name in names]
        data = await to_thread.run_sync(lambda: to_npz(join_chunks(parts)))
        await self._store.put_artifact(record.id, NPZ, data, replacing=names)


def _public_error(error: BaseException | None) -> dict[str, Any]:
    """What a client may know of a failure: our own words, never an exception's.

    It has a ``param`` if the model refused something that the client sent.
    """
    if isinstance(error, InvalidInput):
        return {"code": error.code, "message": str(error), "param": error.param}
    if isinstance(error, WorldCacheError):
        return {"code": error.code, "message": str(error)}
    return {"code": "rollout_failed", "message": "the rollout failed; the server's log has the reason"}
