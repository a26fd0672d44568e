"""What clients send, and the shapes that the service checks before anything else."""

from __future__ import annotations

from typing import Annotated, Any, Literal

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
        None, gt=0, le=240, allow_inf_nan=False, description="Of videos; the model's if left out."
    )


class RolloutBody(Body):
    """A rollout request."""

    model: ShortText = Field(description="Id of a model, as GET /v1/models lists them.")
    observation: ObservationBody
    actions: list[JsonValue] = Field(
        min_length=1, description="One entry per generated frame, in the model's action space."
    )
    conditioning: dict[str, JsonValue] = Field(
        default_factory=dict, description="Anything else that the model can be conditioned on."
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
    metadata: dict[ShortText, Annotated[str, StringConstraints(max_length=512)]] = Field(
        default_factory=dict, max_length=16, description="Kept with the rollout and returned with it."
    )

    @model_validator(mode="before")
    @classmethod
    def _not_yet(cls, value: Any) -> Any:
        """Fields of the contract that this version does not serve yet are refused by name."""
        if isinstance(value, dict) and value.get("conditioning", {}) != {}:
            raise PydanticCustomError(
                "not_supported",
                "{field} is not supported yet; leave it out",
                {"field": "conditioning"},
            )
        return value


class ListQuery(BaseModel):
    """Query of ``GET /v1/rollouts``."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(20, ge=1, le=100)
    after: str | None = Field(None, max_length=64, description="Id after which the page begins.")
    status: Literal["queued", "running", "succeeded", "failed", "cancelled"] | None = None
