"""One model of this server: how far it is, what is known of it, and how the API shows it."""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass, field
from typing import Any

from app.catalogue import ModelEntry
from app.conditioning import conditioning_json
from worldcache.core import ModelInfo
from worldcache.models.base import WorldModel


@dataclass(eq=False)
class HostedModel:
    """One model and how far it is: ``cold``, ``loading``, ``warm`` or ``failed``.

    Attributes:
        entry: what is known of it before it is loaded.
        info: what it says about itself; kept after it was unloaded.
        reason: why it failed.
        failed_at: when, by ``time.monotonic()``.
        memory_bytes: of its weights while they are loaded; expected until it was loaded once.
        held_bytes: of its weights on the device now, from just before loading until it is unloaded.
        load_seconds: how long loading took the last time.
        leases: rollouts that use it.
        waiters: requests that wait for it.
        awaited: it is loaded at the start, which has not happened yet.
    """

    entry: ModelEntry
    status: str = "cold"
    model: WorldModel | None = None
    info: ModelInfo | None = None
    reason: str | None = None
    failed_at: float = 0.0
    held_bytes: int = 0
    load_seconds: float | None = None
    leases: int = 0
    waiters: int = 0
    used_at: float = 0.0
    memory_bytes: int = field(init=False)
    awaited: bool = field(init=False)

    def __post_init__(self) -> None:
        self.memory_bytes, self.awaited = self.entry.weight_bytes, self.entry.preload
        self.loading: asyncio.Task[bool] | None = None
        self.unloading: asyncio.Task[None] | None = None
        self.load_began: float | None = None
        self.wanted_until = 0.0
        self.waits_for_memory = False

    @property
    def id(self) -> str:
        return self.entry.id

    @property
    def idle(self) -> bool:
        """Warm, and nobody would miss it now."""
        return self.status == "warm" and not self.leases and not self.waiters

    @property
    def ready(self) -> bool:
        """False for a model that belongs to the start and was not loaded, or cannot be loaded again.

        One that was unloaded since is loaded when it is asked for: the server is still ready.
        """
        return self.status == "warm" or not (self.awaited or (self.entry.preload and self.status == "failed"))

    def seconds_until_retry(self, pause: float) -> int:
        """How long a model that failed is left alone, of ``pause`` seconds; 0 for one that may be loaded."""
        if self.status != "failed":
            return 0
        return max(0, math.ceil(self.failed_at + pause - time.monotonic()))

    @property
    def expected_seconds(self) -> float | None:
        """How long loading may take from now, if it was ever measured."""
        if self.load_seconds is None:
            return None
        spent = 0.0 if self.load_began is None else time.monotonic() - self.load_began
        return max(0.0, self.load_seconds - spent)


def describe_model(hosted: HostedModel) -> dict[str, Any]:
    """A model as the API shows it; what it says about itself only after it was loaded once."""
    answer: dict[str, Any] = {
        "id": hosted.id,
        "object": "model",
        "status": hosted.status,
        "device": hosted.entry.device,
        "memory_bytes": hosted.memory_bytes,
        "load_seconds": None if hosted.load_seconds is None else round(hosted.load_seconds, 3),
        "rollouts": hosted.leases,
    }
    if hosted.reason:
        answer["reason"] = hosted.reason
    if hosted.info is None:
        return answer
    info = hosted.info
    return answer | {
        "description": info.description,
        "action_space": info.action_space.describe(),
        "modalities": [
            {"name": m.name, "channels": m.channels, "unit": m.unit, "high": m.high, "picture": m.picture}
            for m in info.modalities
        ],
        "resolution": {"height": info.resolution[0], "width": info.resolution[1]},
        "fps": info.fps,
        "context_frames": info.context_frames,
        "chunk_frames": info.chunk_frames,
        "chunk_lengths": list(info.chunk_lengths or (info.chunk_frames,)),
        "observed_frames": info.observed_frames,
        "conditioning": conditioning_json(info),
        "tasks": {
            name: {
                "description": task.description,
                "needs": list(task.needs),
                "num_inference_steps": task.num_inference_steps,
                "guidance_scale": task.guidance_scale,
            }
            for name, task in info.tasks.items()
        },
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
        "licence": info.licence,
        "notice": info.notice,
    }
