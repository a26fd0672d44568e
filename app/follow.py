"""A rollout while it runs: its events become the record, the frames, the metrics."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from anyio import to_thread

from app.dispatcher import Job
from app.media import to_npz
from app.metrics import Metrics
from app.store import NPZ, RolloutRecord, Store
from worldcache.core import ChunkFinished, Frames, RolloutEnded, RolloutStarted
from worldcache.errors import InvalidInput, WorldCacheError

logger = logging.getLogger(__name__)


class Follower:
    """Keeps records true to what happens."""

    def __init__(self, store: Store, metrics: Metrics) -> None:
        self._store, self._metrics = store, metrics

    async def follow(self, record: RolloutRecord, job: Job, changed: Callable[[], None]) -> None:
        """Keep the record true to the rollout's events until the last one.

        Args:
            record: of the rollout.
            job: where its events come from.
            changed: told after every change.
        """
        frames: list[Frames] = []
        queued = self._metrics.queue_depth.labels(record.model)
        active = self._metrics.active_rollouts.labels(record.model)
        queued.inc()
        started = False
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
                    frames.append(event.frames)
                    count = len(next(iter(event.frames.values())))
                    record.frames_done += count
                    record.chunks.append(event.stats)
                    self._metrics.chunk_finished(record.model, record.policy, event.stats, count)
                else:
                    await self._finish(record, event, frames)
                changed()
        finally:
            (active if started else queued).dec()

    async def _finish(self, record: RolloutRecord, event: RolloutEnded, frames: list[Frames]) -> None:
        """Write the last word on a rollout: statistics, error, frames."""
        status = event.status
        if event.error is not None:
            record.error = _public_error(event.error)
            logger.warning("rollout %s %s: %s", record.id, status, event.error)
        if status == "succeeded":
            try:
                await self._keep_frames(record, frames)
            except Exception as error:
                logger.exception("the frames of rollout %s cannot be kept", record.id)
                status, record.error = "failed", _public_error(error)
        record.stats, record.finished_at = event.stats, time.time()
        if record.deadline_at is not None:
            record.deadline_met = status == "succeeded" and record.finished_at <= record.deadline_at
        record.status = status
        self._metrics.rollout_ended(record.model, status, event.stats)
        await self._store.save(record)

    async def _keep_frames(self, record: RolloutRecord, frames: list[Frames]) -> None:
        whole = {name: np.concatenate([part[name] for part in frames]) for name in frames[0]}
        data = await to_thread.run_sync(to_npz, whole)
        await self._store.put_artifact(record.id, NPZ, data)


def _public_error(error: BaseException | None) -> dict[str, Any]:
    """What a client may know of a failure: our own words, never an exception's.

    It has a ``param`` if the model refused something that the client sent.
    """
    if isinstance(error, InvalidInput):
        return {"code": error.code, "message": str(error), "param": error.param}
    if isinstance(error, WorldCacheError):
        return {"code": error.code, "message": str(error)}
    return {"code": "rollout_failed", "message": "the rollout failed; the server's log has the reason"}
