"""The shapes of what the service answers, for its OpenAPI description. Fields may be added to any of them."""

from __future__ import annotations

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict


class ErrorPart(TypedDict):
    """What went wrong."""

    code: str
    message: str
    param: str | None
    request_id: str


class ErrorAnswer(TypedDict):
    """The envelope of every error."""

    error: ErrorPart


class Trouble(TypedDict):
    """An error inside another answer."""

    code: str
    message: str
    param: NotRequired[str | None]


class Encoded(TypedDict):
    """An artifact in an answer."""

    media_type: str
    base64: str


class Inline(TypedDict):
    """Artifacts, by modality where there is one for each."""

    npz: NotRequired[Encoded]
    video: NotRequired[dict[str, Encoded]]
    frames: NotRequired[dict[str, list[Encoded]]]


class ArtifactLinks(TypedDict):
    """Paths of the artifacts; none until the rollout has succeeded."""

    npz: NotRequired[str]
    video: NotRequired[dict[str, str]]
    frames: NotRequired[dict[str, list[str]]]
    inline: NotRequired[Inline]


class Deadline(TypedDict):
    """What became of a deadline."""

    ms: float
    met: bool | None
    chosen: str | None


class ModalityPart(TypedDict):
    """How one modality of a chunk was denoised."""

    tokens: int
    skipped: int
    error: float | None


class Chunk(TypedDict):
    """How one chunk was denoised."""

    index: int
    decisions: str
    token_classes: dict[str, dict[str, float]] | None
    drift: list[float | None]
    fallbacks: int
    modalities: dict[str, ModalityPart]


class Stats(TypedDict):
    """What some frames took."""

    policy: str
    replaced_preset: str | None
    steps_total: int
    steps_full: int
    steps_cached: int
    skip_ratio: float
    expected_ms: float | None
    queue_ms: float | None
    first_frame_ms: float | None
    latency_ms: float | None
    denoise_ms: float | None
    decode_ms: float | None
    frames_per_second: float | None
    deadline: NotRequired[Deadline]
    chunks: list[Chunk]


class RolloutAnswer(TypedDict):
    """A rollout."""

    id: str
    object: Literal["rollout"]
    status: Literal["queued", "running", "succeeded", "failed", "cancelled"]
    model: str
    created_at: float
    started_at: float | None
    finished_at: float | None
    seed: int
    frames: int
    frames_done: int
    artifacts: ArtifactLinks
    stats: Stats
    error: Trouble | None
    metadata: dict[str, str]


class Page(TypedDict):
    """What all pages of a list have."""

    object: Literal["list"]
    first_id: str | None
    last_id: str | None
    has_more: bool


class RolloutList(Page):
    """A page of rollouts."""

    data: list[RolloutAnswer]


class Deleted(TypedDict):
    """Something was removed."""

    id: str
    object: str
    deleted: Literal[True]


class VideoStats(TypedDict):
    """How a video was made."""

    policy: str
    replaced_preset: str | None
    skip_ratio: float | None


class VideoAnswer(TypedDict):
    """A video."""

    id: str
    object: Literal["video"]
    model: str
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: int
    created_at: int
    completed_at: int | None
    expires_at: int | None
    prompt: str | None
    size: str
    seconds: str
    num_frames: int
    seed: int
    error: Trouble | None
    inference_time_s: float | None
    rollout_id: str
    stats: VideoStats


class VideoList(Page):
    """A page of videos."""

    data: list[VideoAnswer]


class ModelAnswer(TypedDict):
    """A model. What it says about itself is missing until it was loaded once."""

    id: str
    object: Literal["model"]
    status: Literal["cold", "loading", "warm", "failed"]
    device: str
    memory_bytes: int
    load_seconds: float | None
    rollouts: int
    reason: NotRequired[str]
    description: NotRequired[str]
    action_space: NotRequired[dict[str, Any]]
    modalities: NotRequired[list[dict[str, Any]]]
    resolution: NotRequired[dict[str, int]]
    fps: NotRequired[float]
    context_frames: NotRequired[int]
    chunk_frames: NotRequired[int]
    chunk_lengths: NotRequired[list[int]]
    observed_frames: NotRequired[int]
    conditioning: NotRequired[dict[str, list[Any]]]
    tasks: NotRequired[dict[str, dict[str, Any]]]
    num_inference_steps: NotRequired[int]
    guidance_scale: NotRequired[float]
    starts: NotRequired[list[str]]
    presets: NotRequired[dict[str, dict[str, Any]]]
    default_preset: NotRequired[str]
    auto_preset: NotRequired[str]
    licence: NotRequired[str]
    notice: NotRequired[str | None]


class ModelList(TypedDict):
    """The models of the server."""

    object: Literal["list"]
    data: list[ModelAnswer]


class PolicyAnswer(TypedDict):
    """A cache policy; its parameters as a JSON schema with defaults."""

    name: str
    description: str
    source: str
    parameters: dict[str, Any]
    plans_ahead: bool


class PolicyList(TypedDict):
    """The cache policies."""

    object: Literal["list"]
    data: list[PolicyAnswer]


class Liveness(TypedDict):
    """Whether the process can do its work."""

    status: Literal["ok", "stopped"]


class Readiness(TypedDict):
    """Whether rollouts are accepted, and what each check says."""

    status: Literal["ready", "not_ready"]
    checks: dict[str, str]
