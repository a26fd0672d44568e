"""What clients send, and the shapes that the service checks before anything else."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

ShortText = Annotated[str, StringConstraints(min_length=1, max_length=256)]

VIDEO_FORMATS = ("mp4", "webp")
IMAGE_FORMATS = ("png", "jpeg")


class Body(BaseModel):
    """Unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ObservationBody(Body):
    """Where the rollout starts."""

    start: ShortText | None = Field(None, description="Name of a start that comes with the model.")
    frames: list[str] | None = Field(
        None,
        min_length=1,
        max_length=64,
        description="PNG, JPEG or WebP images, oldest first, as base64 or data URIs.",
    )
    depth: list[str] | None = Field(
        None,
        min_length=1,
        max_length=64,
        description="A depth map for each frame: 16-bit PNG (with depth_scale) or .npy, as base64.",
    )
    depth_scale: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="The model's depth unit per count of a 16-bit PNG."
    )

    @model_validator(mode="after")
    def _one_source(self) -> ObservationBody:
        if (self.start is None) == (self.frames is None):
            raise PydanticCustomError("one_source", "give either start or frames")
        if self.depth is not None and self.frames is None:
            raise PydanticCustomError("depth_alone", "depth needs frames")
        if self.depth is not None and len(self.depth) != len(self.frames or ()):
            raise PydanticCustomError("depth_count", "give one depth map for each frame, or none")
        return self


class OutputBody(Body):
    """What to make of the frames."""

    format: Literal["mp4", "webp", "png", "jpeg", "npz", "none"] = "mp4"
    modalities: list[ShortText] | None = Field(
        None, min_length=1, max_length=16, description="Which modalities; all of the model's if left out."
    )
    inline: bool = Field(False, description="Add the artifacts to the answer, as base64.")
    fps: float | None = Field(
        None, ge=0.1, le=240, allow_inf_nan=False, description="Of videos; the model's if left out."
    )


class CameraBody(Body):
    """A camera that follows a named trajectory."""

    trajectory: ShortText = Field(description="forward, left, turn_left, orbit_left, ..., or free.")
    frames: int = Field(ge=1, strict=True, description="Frames to generate.")
    distance: float | None = Field(
        None, gt=0, le=1000, allow_inf_nan=False, description="Length of the path, or radius of an orbit."
    )
    angle: float | None = Field(
        None, gt=0, le=360, allow_inf_nan=False, description="Of a turn or an orbit, in degrees."
    )


class ConditioningBody(Body):
    """Whatever else a rollout is conditioned on. Each model says which of it it takes."""

    task: ShortText | None = Field(None, description="What the model is to do; its first task if left out.")
    prompt: str | None = Field(None, max_length=32_000, description="A description of what is seen.")
    negative_prompt: str | None = Field(None, max_length=32_000, description="What it is guided away from.")
    goal: str | None = Field(
        None, description="Where it is to end: a PNG, JPEG or WebP image, as base64 or a data URI."
    )
    fps: float | None = Field(
        None, gt=0, le=240, allow_inf_nan=False, description="Frames a second that the motion is meant for."
    )
    fov: float | None = Field(
        None, gt=0, lt=180, allow_inf_nan=False, description="Horizontal angle of view in degrees."
    )
    camera: CameraBody | None = Field(None, description="In place of actions: a named trajectory.")


class TermsBody(Body):
    """How to generate, whatever it starts from and whatever is to be done."""

    model: ShortText = Field(description="Id of a model, as GET /v1/models lists them.")
    conditioning: ConditioningBody = Field(
        default_factory=lambda: ConditioningBody.model_validate({}),
        description="Whatever else the model can be conditioned on.",
    )
    num_inference_steps: int | None = Field(
        None, ge=1, strict=True, description="Denoise steps per chunk; the model's default if left out."
    )
    guidance_scale: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="1 for none; the model's default if left out."
    )
    seed: int | None = Field(
        None, ge=0, lt=2**63, strict=True, description="Of all randomness; drawn if left out."
    )
    cache: str | dict[str, JsonValue] | None = Field(
        None,
        description="Name of a preset, or an object with a policy and its parameters; the model's default "
        "preset if left out.",
    )
    metadata: dict[ShortText, Annotated[str, StringConstraints(max_length=512)]] = Field(
        default_factory=dict, max_length=16, description="Kept and returned as it is."
    )


class RolloutBody(TermsBody):
    """A rollout request."""

    observation: ObservationBody
    actions: list[JsonValue] | None = Field(
        None,
        min_length=1,
        description="One entry per generated frame, in the model's action space; a camera's may be given by "
        "`conditioning.camera` instead.",
    )
    output: OutputBody = Field(default_factory=lambda: OutputBody.model_validate({}))
    stream: bool = Field(False, strict=True, description="Answer with server-sent events.")
    deadline_ms: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Milliseconds from arrival, queueing included. Without cache, the best quality that "
        "meets them is chosen; what cannot meet them is refused.",
    )
    priority: Literal["interactive", "standard", "background"] = Field(
        "standard", description="What goes first; among equals, clients take turns."
    )


class PageQuery(BaseModel):
    """Query of a list."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(20, ge=1, le=100)
    after: str | None = Field(None, max_length=64, description="Id after which the page begins.")


class ListQuery(PageQuery):
    """Query of ``GET /v1/rollouts``."""

    status: Literal["queued", "running", "succeeded", "failed", "cancelled"] | None = None


class PicturesBody(Body):
    """How the frames of a session's steps are answered."""

    format: Literal["png", "jpeg"] = Field(
        "png", description="PNG is exact, with 16 bits of depth; JPEG is smaller."
    )
    modalities: list[ShortText] | None = Field(
        None, min_length=1, max_length=16, description="Which modalities; all of the model's if left out."
    )


class SessionBody(TermsBody):
    """A new session."""

    observation: ObservationBody
    frames_per_step: int | None = Field(
        None,
        ge=1,
        strict=True,
        description="Frames of a step: a multiple of the model's chunk_frames, which it is if left out.",
    )
    output: PicturesBody = Field(default_factory=lambda: PicturesBody.model_validate({}))


class SnapshotBody(TermsBody):
    """A session as it was written down."""

    object: Literal["session.snapshot"]
    version: Literal[1]
    seed: int = Field(ge=0, lt=2**63, strict=True)
    num_inference_steps: int = Field(ge=1, strict=True)
    guidance_scale: float = Field(ge=0, allow_inf_nan=False)
    frames_per_step: int = Field(ge=1, strict=True)
    output: PicturesBody
    frames: int = Field(ge=0, strict=True, description="How many there were.")
    actions: list[JsonValue] = Field(description="That led to them.")
    start: str = Field(description="The model's context at frame 0: safetensors, as base64.")
    context: str = Field(description="The same after the last frame.")


class RestoreBody(Body):
    """A session that goes on from a snapshot."""

    snapshot: SnapshotBody


class StepBody(Body):
    """One step of a session."""

    actions: list[JsonValue] = Field(
        min_length=1, description="One for each of the step's frames, or one for all of them."
    )
    step_id: int | None = Field(
        None,
        ge=0,
        strict=True,
        description="0 for the first step, then one more than the last committed one; repeating that one "
        "answers the same frames. The next one if left out.",
    )


class SessionStepBody(StepBody):
    """One step of one of several sessions."""

    session_id: ShortText


class BatchStepBody(Body):
    """A step of each of several sessions."""

    steps: list[SessionStepBody] = Field(min_length=1, max_length=64, description="Of different sessions.")
    frames: Literal["all", "last", "none"] = Field("all", description="Which frames of each are answered.")


class PlanBody(Body):
    """Futures to compare."""

    candidates: list[Annotated[list[JsonValue], Field(min_length=1)]] = Field(
        min_length=1,
        description="Sequences of actions; the last one is repeated up to a multiple of frames_per_step.",
    )
    frames: Literal["all", "last", "none"] = Field("all", description="Which frames of each are answered.")


class RewindBody(Body):
    """Where a session goes back to."""

    to_frame: int = Field(ge=0, strict=True, description="The end of a step that is kept, or 0.")


class SessionChangeBody(Body):
    """What can be changed about a session."""

    cache: str | dict[str, JsonValue] | None = Field(
        description="As when it was made, from the next step on; null for the model's default preset."
    )


class NothingBody(Body):
    """A body without fields."""
