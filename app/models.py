"""The models of this server: loaded and warmed in the background, then ready."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from app.dispatcher import InProcessDispatcher
from app.errors import ApiError, NotFound, Unavailable
from app.metrics import Metrics
from worldcache.models.base import WorldModel
from worldcache.models.registry import load_model

logger = logging.getLogger(__name__)


@dataclass
class HostedModel:
    """One model and how far it is: ``cold``, ``loading``, ``warm`` or ``failed``."""

    id: str
    status: str = "cold"
    model: WorldModel | None = None
    reason: str | None = None


@dataclass(frozen=True)
class ModelLease:
    """A model that is warm, and stays so until ``release`` is called."""

    model: WorldModel
    release: Callable[[], None]


class ModelHost:
    """Loads models on the engine's thread and hands out those that are warm.

    Args:
        names: models to load by name.
        given: models that exist already and only need to be warmed.
    """

    def __init__(
        self,
        names: Sequence[str],
        given: Mapping[str, WorldModel] | None,
        *,
        dispatcher: InProcessDispatcher,
        metrics: Metrics,
        dtype: str,
    ) -> None:
        self._dispatcher, self._metrics = dispatcher, metrics
        self._device, self._dtype = dispatcher.devices[0], dtype
        if given is not None:
            self._models = {name: HostedModel(name, model=model) for name, model in given.items()}
        else:
            self._models = {name: HostedModel(name) for name in names}

    async def load_all(self) -> None:
        """Load and warm every model; one that cannot be loaded stays ``failed``, with the reason."""
        for hosted in self._models.values():
            hosted.status = "loading"
            self._metrics.add_model(hosted.id)
        for hosted in self._models.values():
            began = time.monotonic()
            try:
                load = partial(self._load, hosted)
                model = await asyncio.wrap_future(self._dispatcher.call(self._device, load))
            except Exception as error:
                logger.exception("model %s cannot be loaded", hosted.id)
                hosted.status, hosted.reason = "failed", type(error).__name__
                continue
            hosted.model, hosted.status = model, "warm"
            self._metrics.model_ready.labels(hosted.id).set(1)
            self._metrics.model_memory.labels(hosted.id).set(model.memory_bytes)
            logger.info("model %s is warm after %.1f s", hosted.id, time.monotonic() - began)

    def _load(self, hosted: HostedModel) -> WorldModel:
        """Runs on the engine's thread."""
        model = hosted.model or load_model(hosted.id, device=self._device, dtype=self._dtype)
        model.warm()
        return model

    def all(self) -> list[HostedModel]:
        return list(self._models.values())

    def find(self, model_id: str) -> HostedModel:
        """The model with this id, whatever its status.

        Raises:
            NotFound: it is not one of this server's.
        """
        if model_id not in self._models:
            known = ", ".join(self._models)
            raise NotFound(f"there is no model {model_id!r}; use one of: {known}", code="unknown_model")
        return self._models[model_id]

    async def lease(self, model_id: str) -> ModelLease:
        """The model, for one rollout.

        Raises:
            ApiError: 422 for an unknown model, 503 for one that is not warm.
        """
        if model_id not in self._models:
            known = ", ".join(self._models)
            message = f"there is no model {model_id!r}; use one of: {known}"
            raise ApiError(422, "unknown_model", message, param="model")
        hosted = self._models[model_id]
        if hosted.status == "failed":
            raise Unavailable("model_failed", f"model {model_id!r} could not be loaded", retry_after=60)
        if hosted.status != "warm" or hosted.model is None:
            raise Unavailable("model_loading", f"model {model_id!r} is still loading", retry_after=2)
        return ModelLease(hosted.model, lambda: None)


def describe_model(hosted: HostedModel) -> dict[str, Any]:
    """A model as the API shows it; only its id and status until it is loaded."""
    answer: dict[str, Any] = {"id": hosted.id, "object": "model", "status": hosted.status}
    if hosted.reason:
        answer["reason"] = hosted.reason
    if hosted.model is None:
        return answer
    info = hosted.model.info
    return answer | {
        "description": info.description,
        "action_space": info.action_space.describe(),
        "modalities": [
            {"name": m.name, "channels": m.channels, "unit": m.unit, "high": m.high} for m in info.modalities
        ],
        "resolution": {"height": info.resolution[0], "width": info.resolution[1]},
        "fps": info.fps,
        "context_frames": info.context_frames,
        "chunk_frames": info.chunk_frames,
        "num_inference_steps": info.num_inference_steps,
        "guidance_scale": info.guidance_scale,
        "starts": list(info.starts),
        "presets": {
            name: {"policy": preset.policy, **preset.parameters} for name, preset in info.presets.items()
        },
        "preset_measurements": {
            name: preset.measured for name, preset in info.presets.items() if preset.measured is not None
        },
        "default_preset": info.default_preset,
        "auto_preset": info.auto_preset or info.default_preset,
        "memory_bytes": hosted.model.memory_bytes,
        "device": str(hosted.model.device),
        "licence": info.licence,
    }
