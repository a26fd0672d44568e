"""The models of this server: loaded when they are needed, kept while there is room, leased to rollouts.

Everything here runs on the event loop; loading, warming and unloading run on a device's engine thread.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Container, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch

from app.catalogue import ModelEntry
from app.dispatcher import InProcessDispatcher
from app.errors import ApiError, NotFound, Unavailable
from app.hosted import HostedModel
from app.metrics import Metrics
from worldcache.core import ModelInfo
from worldcache.errors import InvalidInput
from worldcache.models.base import WorldModel

logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")

FAILED_RETRY_SECONDS = 60
"""What Retry-After says of a model that could not be loaded."""
UNKNOWN_RETRY_SECONDS = 5
"""What Retry-After says while nobody knows how long loading takes."""


@dataclass(frozen=True)
class ModelLease:
    """A model that is warm, and stays so until ``release`` is called."""

    model: WorldModel
    release: Callable[[], None]


class ModelHost:
    """Loads models, hands them out, and unloads those idle for longest when there is no room.

    Args:
        entries: the models.
        memory_limit: most bytes of weights on one device; 0 for no limit.
        wait_seconds: how long a request waits for its model to be loaded.
        most_waiters: requests that may wait for a model at the same time.
    """

    def __init__(
        self,
        entries: Sequence[ModelEntry],
        *,
        dispatcher: InProcessDispatcher,
        metrics: Metrics,
        memory_limit: int,
        wait_seconds: float,
        most_waiters: int,
    ) -> None:
        self._dispatcher, self._metrics = dispatcher, metrics
        self._limit, self._wait_seconds, self._most_waiters = memory_limit, wait_seconds, most_waiters
        self._models = {entry.id: HostedModel(entry) for entry in entries}
        self._changed = asyncio.Event()
        for name in self._models:
            metrics.add_model(name)

    async def load_all(self) -> None:
        """Load and warm what belongs to the start; one that cannot be loaded stays ``failed``.

        Models that do not fit beside those before them stay cold.
        """
        planned: Counter[str] = Counter()
        tasks: list[asyncio.Task[bool]] = []
        for hosted in self._models.values():
            if not hosted.entry.preload:
                continue
            device, size = hosted.entry.device, hosted.memory_bytes
            if self._limit and size <= self._limit < planned[device] + size:
                logger.warning("model %s stays cold: %s has no room beside the others", hosted.id, device)
                hosted.awaited = False
                continue
            planned[device] += size
            tasks.append(self._start(hosted, time.monotonic() + self._wait_seconds))
        await asyncio.gather(*tasks)

    @property
    def ready(self) -> bool:
        """True once the models that belong to the start have been loaded."""
        return all(hosted.ready for hosted in self._models.values())

    def all(self, allowed: Container[str] | None = None) -> list[HostedModel]:
        """The models that somebody may use; ``None`` for all."""
        return [hosted for name, hosted in self._models.items() if allowed is None or name in allowed]

    def find(self, model_id: str, allowed: Container[str] | None = None) -> HostedModel:
        """The model with this id, whatever its status.

        Raises:
            NotFound: it is not one of this server's, or not one of those allowed.
        """
        if not self._has(model_id, allowed):
            raise NotFound(self._unknown(model_id, allowed), code="unknown_model")
        return self._models[model_id]

    def info(self, model_id: str) -> ModelInfo:
        """What a model says about itself, also after it was unloaded.

        Raises:
            NotFound: it is not one of this server's.
            Unavailable: it has not been loaded since the server started.
        """
        info = self.find(model_id).info
        if info is None:
            message = f"model {model_id!r} has not been loaded yet; load it and try again"
            raise Unavailable("model_cold", message, retry_after=UNKNOWN_RETRY_SECONDS)
        return info

    def known_info(self, model_id: str) -> ModelInfo | None:
        """The same; ``None`` for a model that is no longer this server's or has not been loaded yet."""
        hosted = self._models.get(model_id)
        return None if hosted is None else hosted.info

    def load(self, model_id: str) -> HostedModel:
        """Start loading a model that is not warm; also one that failed.

        Raises:
            NotFound: it is not one of this server's.
        """
        hosted = self.find(model_id)
        if hosted.status != "warm":
            self._start(hosted, time.monotonic() + self._wait_seconds)
        return hosted

    async def unload(self, model_id: str) -> HostedModel:
        """Unload a model and return once its memory is free; a failed one is cold afterwards.

        Raises:
            NotFound: it is not one of this server's.
            ApiError: 409 while rollouts use it or it is being loaded.
        """
        hosted = self.find(model_id)
        if hosted.status == "loading":
            raise ApiError(409, "model_loading", f"model {model_id!r} is being loaded; unload it afterwards")
        if hosted.leases or hosted.waiters:
            message = f"{hosted.leases} rollouts use model {model_id!r}; wait for them or cancel them"
            raise ApiError(409, "model_in_use", message)
        if hosted.status == "warm":
            self._start_unloading(hosted)
        hosted.status, hosted.reason = "cold", None
        if hosted.unloading is not None:
            await asyncio.wait({hosted.unloading})
        return hosted

    async def lease(
        self, model_id: str, timeout: float | None = None, allowed: Container[str] | None = None
    ) -> ModelLease:
        """The model, for one rollout; one that is cold is loaded first.

        Args:
            model_id: of the model.
            timeout: seconds within which the caller needs it; no longer than the setting if left out.
            allowed: models that the caller may use; the others are unknown to it.

        Raises:
            ApiError: 422 for an unknown model, 503 for one that failed, has no room or is not warm in time,
                504 if that is the caller's own ``timeout``.
        """
        if not self._has(model_id, allowed):
            raise ApiError(422, "unknown_model", self._unknown(model_id, allowed), param="model")
        hosted = self._models[model_id]
        hosted.waiters += 1
        try:
            await self._until_warm(hosted, timeout)
            model = hosted.model
            assert model is not None
            hosted.leases += 1
        finally:
            hosted.waiters -= 1
            self._tell()
        hosted.used_at = time.monotonic()
        return ModelLease(model, _once(partial(self._release, hosted)))

    def _release(self, hosted: HostedModel) -> None:
        hosted.leases -= 1
        hosted.used_at = time.monotonic()
        self._tell()

    async def _until_warm(self, hosted: HostedModel, timeout: float | None) -> None:
        """Return when the model is warm; the loading that this starts goes on if the caller goes away."""
        wait = self._wait_seconds if timeout is None else min(timeout, self._wait_seconds)
        deadline = time.monotonic() + wait
        while hosted.status != "warm":
            if (retry_after := hosted.seconds_until_retry(FAILED_RETRY_SECONDS)) > 0:
                message = f"model {hosted.id!r} could not be loaded"
                raise Unavailable("model_failed", message, retry_after=retry_after)
            if hosted.waiters > self._most_waiters:
                message = "the server is full; try again later"
                raise Unavailable("queue_full", message, retry_after=_retry_after(hosted.expected_seconds))
            task = self._start(hosted, deadline)
            left = deadline - time.monotonic()
            expected = hosted.expected_seconds
            if timeout is not None and expected is not None and expected > left:
                raise _unreachable(hosted, timeout)
            done, _ = await asyncio.wait({task}, timeout=max(0.0, left))
            if not done and not hosted.waits_for_memory:
                raise _unreachable(hosted, wait) if timeout == wait else _still_loading(hosted)
            if done and task.cancelled():
                raise Unavailable("draining", "the server is shutting down", retry_after=5)
            if not done or not task.result():
                message = f"there is no room for model {hosted.id!r} while the others are in use"
                retry_after = _retry_after(hosted.load_seconds)
                raise Unavailable("model_memory_full", message, retry_after=retry_after)

    def _start(self, hosted: HostedModel, until: float) -> asyncio.Task[bool]:
        """The task that loads the model; it waits for room until the last of those who want it gives up."""
        hosted.wanted_until = max(hosted.wanted_until, until)
        if hosted.loading is None:
            hosted.status, hosted.reason = "loading", None
            hosted.loading = asyncio.create_task(self._load(hosted), name=f"load {hosted.id}")
        return hosted.loading

    async def _load(self, hosted: HostedModel) -> bool:
        """Load a model as soon as there is room; False if there was none in time."""
        try:
            if hosted.unloading is not None:
                await asyncio.wait({hosted.unloading})
            if self._limit and hosted.memory_bytes > self._limit:
                reason = f"needs {hosted.memory_bytes} bytes; model_memory_bytes allows {self._limit}"
                self._failed(hosted, reason)
                return True
            if not await self._make_room(hosted):
                logger.warning("model %s stays cold: there is no room for it", hosted.id)
                hosted.status, hosted.awaited = "cold", False
                return False
            await self._load_now(hosted)
            return True
        except asyncio.CancelledError:
            hosted.status = "cold"
            raise
        finally:
            hosted.loading = hosted.load_began = None
            self._tell()

    async def _load_now(self, hosted: HostedModel) -> None:
        hosted.load_began = time.monotonic()
        try:
            model, seconds = await self._call(hosted, partial(_load_and_warm, hosted.entry))
        except Exception as error:
            logger.exception("model %s cannot be loaded", hosted.id)
            self._failed(hosted, str(error) if isinstance(error, InvalidInput) else type(error).__name__)
        else:
            hosted.model, hosted.info, hosted.load_seconds = model, model.info, seconds
            hosted.memory_bytes = hosted.held_bytes = model.memory_bytes
            hosted.status, hosted.awaited, hosted.used_at = "warm", False, time.monotonic()
            self._metrics.model_ready.labels(hosted.id).set(1)
            self._metrics.model_memory.labels(hosted.id).set(model.memory_bytes)
            self._metrics.model_load_time.labels(hosted.id).observe(seconds)
            logger.info("model %s is warm after %.1f s", hosted.id, seconds)
            logger.info("licence of model %s: %s", hosted.id, hosted.info.notice or hosted.info.licence)
            return
        await self._clear(hosted, [])

    def _failed(self, hosted: HostedModel, reason: str) -> None:
        logger.error("model %s failed: %s", hosted.id, reason)
        hosted.status, hosted.reason, hosted.failed_at = "failed", reason, time.monotonic()
        self._metrics.model_load_failures.labels(hosted.id).inc()

    async def _make_room(self, hosted: HostedModel) -> bool:
        """Unload what is idle until the model fits, and hold its bytes; False if it does not fit in time."""
        try:
            while (victims := self._victims(hosted)) is None:
                hosted.waits_for_memory = True
                left = hosted.wanted_until - time.monotonic()
                if left <= 0:
                    return False
                await self._change(left)
            hosted.held_bytes = hosted.memory_bytes
        finally:
            hosted.waits_for_memory = False
        unloading = [self._start_unloading(victim) for victim in victims]
        for victim in victims:
            logger.info("model %s is unloaded to make room for %s", victim.id, hosted.id)
            self._metrics.model_evictions.labels(victim.id).inc()
        if unloading:
            await asyncio.wait(unloading)
        return True

    def _victims(self, hosted: HostedModel) -> list[HostedModel] | None:
        """The idle models to unload for this one, longest idle first; ``None`` if it has to wait."""
        if not self._limit:
            return []
        others = [
            other
            for other in self._models.values()
            if other is not hosted and other.entry.device == hosted.entry.device
        ]
        excess = hosted.memory_bytes + sum(other.held_bytes for other in others) - self._limit
        victims: list[HostedModel] = []
        for other in sorted((other for other in others if other.idle), key=lambda other: other.used_at):
            if excess <= 0:
                break
            victims.append(other)
            excess -= other.held_bytes
        for other in reversed(victims):  # one may have become needless by what came behind it
            if excess + other.held_bytes <= 0:
                victims.remove(other)
                excess += other.held_bytes
        return victims if excess <= 0 else None

    def _start_unloading(self, hosted: HostedModel) -> asyncio.Task[None]:
        """From here on the model is cold; its memory is free when the task is done."""
        assert hosted.model is not None
        hosted.unloading = asyncio.create_task(self._unload(hosted, [hosted.model]))
        hosted.status, hosted.model = "cold", None
        self._metrics.model_ready.labels(hosted.id).set(0)
        return hosted.unloading

    async def _unload(self, hosted: HostedModel, last: list[WorldModel]) -> None:
        try:
            await self._clear(hosted, last)
            logger.info("model %s was unloaded", hosted.id)
        finally:
            hosted.unloading = None
            self._metrics.model_memory.labels(hosted.id).set(0)
            self._tell()

    async def _clear(self, hosted: HostedModel, last: list[WorldModel]) -> None:
        """Give back the memory of a model, to which ``last`` holds the last reference if there is one."""
        try:
            await self._call(hosted, partial(_free, last, hosted.entry.device))
        except Exception:
            logger.exception("the memory of model %s was not given back cleanly", hosted.id)
        finally:
            last.clear()
            hosted.held_bytes = 0

    async def _call(self, hosted: HostedModel, function: Callable[[], ResultT]) -> ResultT:
        """Run a function on the engine thread of the model's device."""
        return await asyncio.wrap_future(self._dispatcher.call(hosted.entry.device, function))

    def _tell(self) -> None:
        """Wake those who wait for room."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def _change(self, seconds: float) -> None:
        """Return after the next change of what is held or used, or after a while."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), seconds)

    def _has(self, model_id: str, allowed: Container[str] | None) -> bool:
        return model_id in self._models and (allowed is None or model_id in allowed)

    def _unknown(self, model_id: str, allowed: Container[str] | None) -> str:
        known = ", ".join(hosted.id for hosted in self.all(allowed)) or "none"
        return f"there is no model {model_id!r}; use one of: {known}"


def _load_and_warm(entry: ModelEntry) -> tuple[WorldModel, float]:
    """The model and how long it took; runs on the engine's thread."""
    began = time.monotonic()
    model = entry.load()
    model.warm()
    return model, time.monotonic() - began


def _free(last: list[WorldModel], device: str) -> None:
    """Drop the last reference to a model and give its memory back; runs on the engine's thread."""
    last.clear()
    gc.collect()
    if torch.device(device).type == "cuda" and torch.cuda.is_initialized():
        with torch.cuda.device(device):
            torch.cuda.empty_cache()


def _once(function: Callable[[], None]) -> Callable[[], None]:
    """A function that does nothing from the second call on."""
    pending = [function]
    return lambda: pending.pop()() if pending else None


def _retry_after(seconds: float | None) -> int:
    return UNKNOWN_RETRY_SECONDS if seconds is None else max(1, math.ceil(seconds))


def _still_loading(hosted: HostedModel) -> Unavailable:
    retry_after = _retry_after(hosted.expected_seconds)
    return Unavailable("model_loading", f"model {hosted.id!r} is still loading", retry_after=retry_after)


def _unreachable(hosted: HostedModel, seconds: float) -> ApiError:
    took = "" if hosted.load_seconds is None else f", which took {hosted.load_seconds:.1f} s last time"
    message = (
        f"model {hosted.id!r} is loading{took}: not within {seconds:.1f} s; allow more time or try later"
    )
    return ApiError(504, "deadline_unreachable", message, param="deadline_ms")
