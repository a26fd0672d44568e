"""What the server answers, as types. Fields that a newer server adds are kept as attributes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

LIVE = ("queued", "running")


class Answer(BaseModel):
    """Frozen, and tolerant of new fields."""

    model_config = ConfigDict(frozen=True, extra="allow", populate_by_name=True)


class ChunkStats(Answer):
    """How one chunk was denoised.

    Attributes:
        decisions: one letter a step, ``F`` computed or ``.`` predicted.
        drift: accumulated drift after each step, ``None`` for policies without one.
        token_classes: share of stable, linear and chaotic tokens by modality.
        modalities: tokens, skips and errors by modality.
    """

    index: int
    decisions: str
    token_classes: Mapping[str, Mapping[str, float]] | None = None
    drift: tuple[float | None, ...] = ()
    fallbacks: int = 0
    modalities: Mapping[str, Mapping[str, Any]] = Field(default_factory=dict)


class Deadline(Answer):
    """What became of a deadline: ``met`` is known at the end, ``chosen`` is the policy for it."""

    ms: float
    met: bool | None = None
    chosen: str | None = None


class RolloutStats(Answer):
    """What a rollout took."""

    policy: str
    steps_total: int = 0
    steps_full: int = 0
    steps_cached: int = 0
    skip_ratio: float = 0.0
    expected_ms: float | None = None
    queue_ms: float | None = None
    first_frame_ms: float | None = None
    latency_ms: float | None = None
    denoise_ms: float | None = None
    decode_ms: float | None = None
    frames_per_second: float | None = None
    replaced_preset: str | None = None
    deadline: Deadline | None = None
    chunks: tuple[ChunkStats, ...] = ()


class Problem(Answer):
    """Why a rollout, a step or a branch failed."""

    code: str
    message: str
    param: str | None = None


class RolloutData(Answer):
    """A rollout as the server described it at one moment.

    Attributes:
        status: ``queued``, ``running``, ``succeeded``, ``failed`` or ``cancelled``.
        num_frames: that it is to have; ``frames`` on the wire.
        frames_done: that it had at that moment.
        artifacts: paths of its files on the server.
    """

    id: str
    status: str
    model: str
    created_at: float
    started_at: float | None = None
    finished_at: float | None = None
    seed: int
    num_frames: int = Field(alias="frames")
    frames_done: int
    artifacts: Mapping[str, Any] = Field(default_factory=dict)
    stats: RolloutStats
    error: Problem | None = None
    metadata: Mapping[str, str] = Field(default_factory=dict)

    @property
    def live(self) -> bool:
        """It had not ended."""
        return self.status in LIVE


class ModalityDescription(Answer):
    """One kind of picture (or matrix) that a model generates, its unit, and the largest value to expect."""

    name: str
    channels: int
    unit: str
    high: float
    picture: bool = True


class Resolution(Answer):
    """In pixels."""

    height: int
    width: int


class ActionSpace(Answer):
    """What a model can be told to do in one frame; which fields there are depends on ``type``."""

    type: str
    names: tuple[str, ...] | None = None
    shape: tuple[int, ...] | None = None
    low: Any = None
    high: Any = None


class ModelDescription(Answer):
    """A model of the server. What is ``None`` the server knows only once it has loaded the model.

    Attributes:
        status: ``cold``, ``loading``, ``warm`` or ``failed``, for the ``reason`` given.
        rollouts: that use it now.
        presets: policy and parameters by the name of the preset.
    """

    id: str
    status: str
    device: str | None = None
    memory_bytes: int | None = None
    load_seconds: float | None = None
    rollouts: int = 0
    reason: str | None = None
    description: str | None = None
    action_space: ActionSpace | None = None
    modalities: tuple[ModalityDescription, ...] | None = None
    resolution: Resolution | None = None
    fps: float | None = None
    context_frames: int | None = None
    chunk_frames: int | None = None
    chunk_lengths: tuple[int, ...] | None = None
    observed_frames: int | None = None
    conditioning: Mapping[str, Any] | None = None
    tasks: Mapping[str, Any] | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    starts: tuple[str, ...] | None = None
    presets: Mapping[str, Mapping[str, Any]] | None = None
    default_preset: str | None = None
    auto_preset: str | None = None
    licence: str | None = None
    notice: str | None = None


class PolicyDescription(Answer):
    """A cache policy; ``parameters`` is the JSON schema of what it takes."""

    name: str
    description: str = ""
    source: str = ""
    parameters: Mapping[str, Any] = Field(default_factory=dict)
    plans_ahead: bool = False
