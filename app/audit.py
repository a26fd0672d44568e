"""Quality audits: sampled rollouts are run again uncached, and a preset that falls short is replaced."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from anyio import to_thread
from numpy.typing import NDArray

from app.dispatcher import UNCACHED, Dispatcher
from app.errors import ApiError, NotFound
from app.media import from_npz
from app.metrics import Metrics
from app.models import ModelHost, ModelLease
from app.settings import Settings
from app.store import NPZ, RolloutRecord, Store
from worldcache.core import ChunkFinished, ModelInfo, RolloutEnded
from worldcache.engine.rollout import Priority, RolloutRequest
from worldcache.errors import RolloutCancelled
from worldcache.models.base import WorldModel
from worldcache.policies.registry import make_policy

logger = logging.getLogger(__name__)

SAFETY = ("fast", "balanced", "quality", "none")
"""Names of presets, the safest last."""

MAX_PENDING = 2
"""Most audits that run or wait at a time; each holds a rollout's frames."""

MAX_PSNR = 100.0


@dataclass(frozen=True)
class Choice:
    """What a rollout is served with.

    Attributes:
        cache: as in a request.
        preset: name of the preset that it is; ``None`` for a policy that the client spelt out.
        replaced: name of the preset that was asked for, if another one is served.
    """

    cache: str | dict[str, Any] | None
    preset: str | None
    replaced: str | None = None


class PresetGuard:
    """Remembers how presets fared in audits, and which of them are replaced.

    Nothing comes back by itself: a replaced preset gets no audits of its own any more.

    Args:
        floors: least mean PSNR in dB by model; a model without one is never touched.
        window: how many of the latest audits are averaged.
        min_samples: fewest audits before anything is replaced.
    """

    def __init__(self, floors: Mapping[str, float], *, window: int, min_samples: int) -> None:
        self._floors, self._window, self._min_samples = floors, window, min_samples
        self._latest: dict[tuple[str, str], deque[float]] = {}
        self._successors: dict[tuple[str, str], str] = {}

    def choose(self, cache: str | dict[str, Any] | None, info: ModelInfo) -> Choice:
        """What to serve a request with; unknown names are left for others to refuse."""
        if isinstance(cache, dict):
            return Choice(cache, None)
        asked = info.default_preset if cache is None else cache
        if asked == "auto":
            asked = info.auto_preset or info.default_preset
        served = asked
        while (info.id, served) in self._successors:
            served = self._successors[info.id, served]
        return Choice(served, served, asked if served != asked else None)

    def add(self, info: ModelInfo, preset: str, psnr: float) -> str | None:
        """Take note of an audit.

        Returns:
            The preset that stands in for ``preset`` from now on, if this audit was one too many.
        """
        key = (info.id, preset)
        latest = self._latest.setdefault(key, deque(maxlen=self._window))
        latest.append(psnr)
        floor = self._floors.get(info.id)
        if floor is None or key in self._successors or len(latest) < self._min_samples:
            return None
        successor = next_safer(preset, info)
        if successor is None or self.mean(info.id, preset) >= floor:
            return None
        self._successors[key] = successor
        return successor

    def mean(self, model: str, preset: str) -> float:
        """Mean PSNR of the latest audits."""
        latest = self._latest[model, preset]
        return sum(latest) / len(latest)


def next_safer(preset: str, info: ModelInfo) -> str | None:
    """The next safer preset of a model that differs from ``preset``; ``None`` if there is none.

    For a preset with a name of its own only the uncached one is known to be safer.
    """
    own = info.presets[preset]
    safer = SAFETY[SAFETY.index(preset) + 1 :] if preset in SAFETY else (UNCACHED,)
    for name in safer:
        other = info.presets.get(name)
        if other is not None and (other.policy, other.parameters) != (own.policy, own.parameters):
            return name
    return None


class Auditor:
    """Runs sampled rollouts again, uncached and out of the clients' sight.

    Args:
        settings: say how many.
        guard: hears of the results.
    """

    def __init__(
        self,
        settings: Settings,
        guard: PresetGuard,
        models: ModelHost,
        dispatcher: Dispatcher,
        store: Store,
        metrics: Metrics,
    ) -> None:
        self.guard = guard
        self._share, self._models, self._dispatcher = settings.audit_share, models, dispatcher
        self._store, self._metrics = store, metrics
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    async def consider(self, record: RolloutRecord, request: RolloutRequest, preset: str | None) -> None:
        """Audit a rollout that has ended, if it is one of the sample. Returns before the audit runs.

        One that another process began is not: its request is not whole.

        Args:
            record: of the rollout, whose model is still leased.
            request: as it was run.
            preset: that it was run with; ``None`` for a policy that the client spelt out.
        """
        if record.status != "succeeded" or record.policy == UNCACHED or request.state is not None:
            return
        if not is_sampled(record.id, self._share):
            return
        try:
            lease = await self._models.lease(record.model)
        except ApiError:
            self._count(record, "skipped")
            return
        if self._closed or len(self._tasks) >= MAX_PENDING:
            lease.release()
            self._count(record, "skipped")
            return
        task = asyncio.create_task(self._audit(record, request, preset, lease))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Drop every audit and begin no more; does not wait for the device."""
        self._closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _audit(
        self, record: RolloutRecord, request: RolloutRequest, preset: str | None, lease: ModelLease
    ) -> None:
        try:
            psnr = await self._measure(record, request, lease)
        except ApiError:
            self._count(record, "skipped")
        except Exception:
            logger.exception("the audit of rollout %s failed", record.id)
            self._count(record, "failed")
        else:
            self._count(record, "compared")
            self._report(lease.model.info, request.policy.name, preset, psnr)
        finally:
            lease.release()

    async def _measure(self, record: RolloutRecord, request: RolloutRequest, lease: ModelLease) -> float:
        """PSNR of a rollout against its uncached run.

        Raises:
            ApiError: its frames are gone, or there is no room for another rollout.
            Exception: the uncached run failed.
        """
        npz = await self._store.get_artifact(record.id, NPZ)
        if npz is None:
            raise NotFound(f"the frames of rollout {record.id} are gone")
        reference = await self._run(lease.model, uncached(request))
        return await to_thread.run_sync(lambda: psnr_db(from_npz(npz)["rgb"], reference))

    async def _run(self, model: WorldModel, request: RolloutRequest) -> NDArray[np.uint8]:
        """RGB frames of a request; it is dropped if this is cancelled."""
        job = self._dispatcher.submit(model, request)
        parts: list[NDArray[np.uint8]] = []
        status = None
        try:
            async for event in job.events():
                if isinstance(event, ChunkFinished):
                    parts.append(event.frames["rgb"])
                elif isinstance(event, RolloutEnded):
                    status = event.status
                    if event.error is not None:
                        raise event.error
        finally:
            if status is None:
                job.cancel()
        if status != "succeeded":
            raise RolloutCancelled("the uncached run was cancelled")
        return np.concatenate(parts)

    def _report(self, info: ModelInfo, policy: str, preset: str | None, psnr: float) -> None:
        self._metrics.audit_psnr.labels(info.id, policy).observe(psnr)
        if preset is None:
            return
        successor = self.guard.add(info, preset, psnr)
        if successor is not None:
            self._metrics.policy_replaced.labels(info.id, preset).inc()
            logger.warning(
                "preset %s of model %s is replaced by %s: its latest audits average %.1f dB, below the floor",
                preset,
                info.id,
                successor,
                self.guard.mean(info.id, preset),
            )

    def _count(self, record: RolloutRecord, result: str) -> None:
        self._metrics.audits.labels(record.model, result).inc()


def uncached(request: RolloutRequest) -> RolloutRequest:
    """The same rollout with every step computed, whenever there is nothing else to do."""
    return replace(
        request,
        policy=make_policy(UNCACHED),
        client="audit",
        priority=Priority.IDLE,
        deadline=None,
        pace=None,
    )


def is_sampled(rollout_id: str, share: float) -> bool:
    """Whether a rollout is one of the share: decided by its id alone."""
    digest = hashlib.sha256(rollout_id.encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def psnr_db(frames: NDArray[np.uint8], reference: NDArray[np.uint8]) -> float:
    """PSNR of 8-bit pictures in dB over all frames, at most 100."""
    error = float(np.square(frames.astype(np.float32) - reference).mean(dtype=np.float64))
    return MAX_PSNR if error == 0 else min(MAX_PSNR, 10 * math.log10(255**2 / error))
