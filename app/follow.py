"""A rollout while it runs: its events become the record, the frames in the store, the metrics."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from anyio import to_thread

from app.errors import ApiError
from app.frames import chunk_name, join_chunks, pack_chunk
from app.live import LiveRollout
from app.media import to_npz
from app.metrics import Metrics
from app.store import NPZ, Checkpoint, LeaseLost, RolloutRecord, Store
from app.tracing import Tracing
from worldcache.core import (
    ChunkFinished,
    ChunkStats,
    RolloutEnded,
    RolloutEvent,
    RolloutStarted,
    RolloutStats,
)
from worldcache.engine.pace import describe_budgets
from worldcache.errors import InvalidInput, WorldCacheError

logger = logging.getLogger(__name__)


class Follower:
    """Keeps records true to what happens."""

    def __init__(self, store: Store, metrics: Metrics, tracing: Tracing | None = None) -> None:
        self._store, self._metrics, self._tracing = store, metrics, tracing or Tracing()

    async def follow(self, live: LiveRollout, deadline: float | None = None) -> None:
        """Keep the record true to the rollout's events until the last one, or until it was let go of.

        Args:
            live: the rollout.
            deadline: by ``time.monotonic()``, which no change of the wall clock moves.
        """
        model = live.record.model
        queued, active = self._metrics.queue_depth.labels(model), self._metrics.active_rollouts.labels(model)
        queued.inc()
        started = False
        trouble: Exception | None = None
        trace = self._tracing.rollout(live.record)
        try:
            async for event in live.job.events():
                trace.hear(event)
                if live.lost:
                    continue
                if isinstance(event, RolloutStarted):
                    started = True
                    queued.dec()
                    active.inc()
                try:
                    trouble = await self._take(live, event, trouble, deadline)
                except LeaseLost:
                    logger.warning("rollout %s is others' now", live.record.id)
                    live.lose()
                live.changed()
        finally:
            (active if started else queued).dec()
            trace.end()

    async def refuse(self, record: RolloutRecord, error: Exception) -> None:
        """Write down that a rollout which was accepted cannot be run.

        Raises:
            LeaseLost: it is another process's.
        """
        if isinstance(error, ApiError):
            record.error = {"code": error.code, "message": error.message}
            if error.param is not None:
                record.error["param"] = error.param
        else:
            record.error = _public_error(error)
        logger.warning("rollout %s cannot be run: %s", record.id, error)
        record.stats = RolloutStats(
            record.policy, tuple(record.chunks), record.queue_seconds, record.first_frame_seconds
        )
        record.status, record.finished_at = "failed", time.time()
        record.deadline_met = None if record.deadline_at is None else False
        self._metrics.rollout_ended(record.model, record.status, record.stats)
        await self._store.save(record)

    async def _take(
        self, live: LiveRollout, event: RolloutEvent, trouble: Exception | None, deadline: float | None
    ) -> Exception | None:
        """Write an event down; returns why a chunk could not be kept, now or before."""
        record = live.record
        checkpoint: Checkpoint | None = None
        if isinstance(event, RolloutStarted):
            self._start(live, event)
        elif isinstance(event, ChunkFinished):
            if trouble is None and (trouble := await self._keep_chunk(live, event)):
                live.job.cancel()
            elif trouble is None:
                checkpoint = await self._checkpoint(live, event)
        elif live.released and event.status == "cancelled" and trouble is None:
            return None
        else:
            await self._finish(live, event, trouble, deadline)
        await self._store.save(record, checkpoint)
        return trouble

    def _start(self, live: LiveRollout, event: RolloutStarted) -> None:
        record = live.record
        if record.started_at is None:
            record.started_at = time.time()
            record.queue_seconds = event.queue_seconds + (live.waited or 0.0)
            self._metrics.rollout_started(record.model, record.queue_seconds)
        record.status = "running"

    async def _keep_chunk(self, live: LiveRollout, event: ChunkFinished) -> Exception | None:
        """Keep a chunk's frames, then tell of them; returns why it is impossible, if it is."""
        record, index = live.record, live.first_chunk + event.stats.index
        if index < len(record.chunks):
            return None  # it was kept before, by a process that could not say how to go on behind it
        try:
            data = await to_thread.run_sync(pack_chunk, event.frames)
            await self._store.put_artifact(record.id, chunk_name(index), data)
        except LeaseLost:
            raise
        except Exception as error:
            logger.exception("a chunk of rollout %s cannot be kept", record.id)
            return error
        count = len(next(iter(event.frames.values())))
        stats = event.stats if index == event.stats.index else replace(event.stats, index=index)
        if live.paced:
            _tell_budgets(record, [*record.chunks, stats])
        record.chunks.append(stats)
        record.chunk_ends.append(record.frames_done + count)
        if record.first_frame_seconds is None:
            record.first_frame_seconds = time.time() - record.created_at
        self._metrics.chunk_finished(record.model, record.policy, stats, count)
        return None

    async def _checkpoint(self, live: LiveRollout, event: ChunkFinished) -> Checkpoint | None:
        """Where others can go on behind a chunk; the last one is not worth it."""
        record = live.record
        if live.export is None or event.state is None or record.frames_done >= record.frames:
            return None
        try:
            return await live.export(event.state, live.first_chunk + event.stats.index + 1)
        except Exception:
            logger.exception("the state of rollout %s cannot be written down", record.id)
            return None

    async def _finish(
        self, live: LiveRollout, event: RolloutEnded, trouble: Exception | None, deadline: float | None
    ) -> None:
        """Write the last word on a rollout: statistics, error, frames.

        Args:
            live: the rollout.
            event: its last one.
            trouble: why a chunk could not be kept.
            deadline: by ``time.monotonic()``.
        """
        record = live.record
        status = event.status if trouble is None else "failed"
        error = trouble or event.error
        if error is not None:
            record.error = _public_error(error)
            logger.warning("rollout %s %s: %s", record.id, status, error)
        if status == "succeeded":
            try:
                await self._keep_frames(record)
            except LeaseLost:
                raise
            except Exception as failure:
                logger.exception("the frames of rollout %s cannot be kept", record.id)
                status, record.error = "failed", _public_error(failure)
        record.stats, record.finished_at = _whole_stats(live, event.stats), time.time()
        if deadline is not None:
            record.deadline_met = status == "succeeded" and time.monotonic() <= deadline
        record.status = status
        self._metrics.rollout_ended(record.model, status, record.stats)

    async def _keep_frames(self, record: RolloutRecord) -> None:
        """Put the chunks' frames into one file."""
        names = [chunk_name(chunk) for chunk in range(len(record.chunks))]
        parts = [await self._store.get_artifact(record.id, name) for name in names]
        data = await to_thread.run_sync(lambda: to_npz(join_chunks(parts)))
        await self._store.put_artifact(record.id, NPZ, data, replacing=names)


def _tell_budgets(record: RolloutRecord, chunks: Sequence[ChunkStats]) -> None:
    """Say what the deadline has made of the policy so far."""
    full_steps = [chunk.decisions.count("F") for chunk in chunks]
    record.chosen = describe_budgets(full_steps, len(chunks[0].decisions))
    record.policy = record.chosen.partition(",")[0]


def _whole_stats(live: LiveRollout, stats: RolloutStats) -> RolloutStats:
    """What a rollout took from its acceptance on; of several processes' arithmetic, the last one's."""
    record = live.record
    stats = replace(stats, policy=record.policy)
    if live.waited is None:
        return stats
    return replace(
        stats,
        chunks=tuple(record.chunks),
        queue_seconds=record.queue_seconds,
        first_frame_seconds=record.first_frame_seconds,
        latency_seconds=live.waited + stats.latency_seconds,
    )


def _public_error(error: BaseException | None) -> dict[str, Any]:
    """What a client may know of a failure: our own words, never an exception's.

    It has a ``param`` if the model refused something that the client sent.
    """
    if isinstance(error, InvalidInput):
        return {"code": error.code, "message": str(error), "param": error.param}
    if isinstance(error, WorldCacheError):
        return {"code": error.code, "message": str(error)}
    return {"code": "rollout_failed", "message": "the rollout failed; the server's log has the reason"}
