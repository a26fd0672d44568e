"""Rollouts from request to artifacts: validate, submit, follow, keep."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
import uuid
from dataclasses import dataclass
from typing import Any

import numpy as np
from anyio import to_thread

from app.dispatcher import Dispatcher, Job
from app.errors import ApiError, Unavailable
from app.media import to_npz
from app.metrics import Metrics
from app.models import ModelHost
from app.observations import read_observation
from app.schemas import RolloutBody
from app.settings import Settings
from app.store import RolloutRecord, Store
from worldcache.core import ChunkFinished, Frames, ModelInfo, RolloutEnded, RolloutStarted
from worldcache.engine.rollout import RolloutRequest
from worldcache.errors import InvalidInput, UnknownName, WorldCacheError
from worldcache.policies.choose import choose_policy

logger = logging.getLogger(__name__)

NPZ = "frames.npz"


@dataclass
class LiveRollout:
    """A rollout that has not ended.

    Attributes:
        task: follows the job's events.
        waiters: requests that wait for the end.
        detached: it was asked for asynchronously, so it goes on although nobody waits.
    """

    record: RolloutRecord
    job: Job
    task: asyncio.Task[None]
    waiters: int = 0
    detached: bool = False


class RolloutService:
    """Everything that the routes do with rollouts."""

    def __init__(
        self, settings: Settings, models: ModelHost, dispatcher: Dispatcher, store: Store, metrics: Metrics
    ) -> None:
        self._settings, self._models = settings, models
        self._dispatcher, self.store, self._metrics = dispatcher, store, metrics
        self._live: dict[str, LiveRollout] = {}
        self.draining = False

    async def create(self, body: RolloutBody, owner: str, rollout_id: str | None = None) -> RolloutRecord:
        """Accept a rollout; it runs from here on.

        Raises:
            ApiError, InvalidInput: the request cannot be served; nothing was started.
        """
        try:
            if self.draining:
                raise Unavailable("draining", "the server is shutting down", retry_after=5)
            model = self._models.warm(body.model)
            request = await self._to_request(body, model.info)
            job = self._dispatcher.submit(model, request)
        except (ApiError, InvalidInput) as error:
            self._metrics.rejected.labels(error.code).inc()
            raise
        record = RolloutRecord(
            id=rollout_id or new_rollout_id(),
            owner=owner,
            model=body.model,
            policy=request.policy.name,
            seed=request.seed,
            frames=len(request.actions),
            output=body.output,
            metadata=body.metadata,
        )
        self._metrics.queue_depth.labels(record.model).inc()
        task = asyncio.create_task(self._follow(record, job))
        self._live[record.id] = LiveRollout(record, job, task)
        await self.store.add(record)
        return record

    async def wait(self, record: RolloutRecord) -> None:
        """Return once the rollout has ended."""
        live = self._live.get(record.id)
        if live is None:
            return
        live.waiters += 1
        try:
            await asyncio.shield(live.task)
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

    async def _to_request(self, body: RolloutBody, info: ModelInfo) -> RolloutRequest:
        """The engine's request; every limit is checked before anything is decoded."""
        settings = self._settings
        steps = info.num_inference_steps if body.num_inference_steps is None else body.num_inference_steps
        most_steps = min(settings.max_inference_steps, info.max_inference_steps)
        guidance = info.guidance_scale if body.guidance_scale is None else body.guidance_scale
        if len(body.actions) > settings.max_frames:
            raise ApiError(
                422, "too_many_frames", f"at most {settings.max_frames} actions, one a frame", param="actions"
            )
        if steps > most_steps:
            raise ApiError(422, "too_many_steps", f"at most {most_steps} steps", param="num_inference_steps")
        if guidance > settings.max_guidance_scale:
            message = f"at most {settings.max_guidance_scale}"
            raise ApiError(422, "invalid_value", message, param="guidance_scale")
        for index, name in enumerate(body.output.modalities or ()):
            info.modality(name, param=f"output.modalities.{index}")
        start = body.observation.start
        if start is not None and start not in info.starts:
            raise UnknownName("start", start, info.starts, param="observation.start")
        policy = choose_policy(body.cache, info)
        actions = info.action_space.parse(body.actions)
        observation = await to_thread.run_sync(
            lambda: read_observation(
                body.observation,
                info,
                max_bytes=settings.max_image_bytes,
                max_pixels=settings.max_image_pixels,
            )
        )
        seed = secrets.randbits(63) if body.seed is None else body.seed
        return RolloutRequest(observation, actions, policy, seed, steps, guidance)

    async def _follow(self, record: RolloutRecord, job: Job) -> None:
        """Keep the record true to the rollout's events until the last one."""
        frames: list[Frames] = []
        queued = self._metrics.queue_depth.labels(record.model)
        active = self._metrics.active_rollouts.labels(record.model)
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
        finally:
            (active if started else queued).dec()
            self._live.pop(record.id, None)

    async def _finish(self, record: RolloutRecord, event: RolloutEnded, frames: list[Frames]) -> None:
        """Write the last word on a rollout: statistics, error, frames."""
        status = event.status
        if status == "failed":
            record.error = _public_error(event.error)
            logger.warning("rollout %s failed: %s", record.id, event.error)
        if status == "succeeded":
            try:
                await self._keep_frames(record, frames)
            except Exception as error:
                logger.exception("the frames of rollout %s cannot be kept", record.id)
                status, record.error = "failed", _public_error(error)
        record.stats, record.finished_at = event.stats, time.time()
        record.status = status
        self._metrics.rollout_ended(record.model, status, event.stats)
        await self.store.save(record)

    async def _keep_frames(self, record: RolloutRecord, frames: list[Frames]) -> None:
        whole = {name: np.concatenate([part[name] for part in frames]) for name in frames[0]}
        data = await to_thread.run_sync(to_npz, whole)
        await self.store.put_artifact(record.id, NPZ, data)


def new_rollout_id() -> str:
    """A fresh id."""
    return f"ro_{uuid.uuid4().hex}"


def _public_error(error: BaseException | None) -> dict[str, Any]:
    """What a client may know of a failure: our own words, never an exception's.

    It has a ``param`` if the model refused something that the client sent.
    """
    if isinstance(error, InvalidInput):
        return {"code": error.code, "message": str(error), "param": error.param}
    if isinstance(error, WorldCacheError):
        return {"code": error.code, "message": str(error)}
    return {"code": "rollout_failed", "message": "the rollout failed; the server's log has the reason"}
