"""OpenAI-style videos as a view of rollouts: what a client asks for, and what it gets to see."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints

from app.errors import ApiError
from app.schemas import Body, RolloutBody, ShortText
from app.store import RolloutRecord
from worldcache.actions import CameraPoseActionSpace, DiscreteActionSpace
from worldcache.core import ModelInfo
from worldcache.errors import InvalidInput

DEFAULT_SECONDS = 4.0
"""Length of a video that nothing is said about, as OpenAI's."""

MAX_SIDE = 1920
"""Most pixels of a video's longer side."""

PROMPT, SIZE = "prompt", "size"
"""Metadata of the rollout in which a video's prompt and size are kept."""

MAX_METADATA = 512

VIDEO_PREFIX, ROLLOUT_PREFIX = "video_", "ro_"

NUMBERS = ("num_frames", "fps", "num_inference_steps", "guidance_scale", "seed")
JSON_FIELDS = ("actions", "cache")

_STATUS: Mapping[str, str] = MappingProxyType(
    {
        "queued": "queued",
        "running": "in_progress",
        "succeeded": "completed",
        "failed": "failed",
        "cancelled": "failed",
    }
)
"""A rollout's status as a video's."""

Size = Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]{0,4}x[1-9][0-9]{0,4}$")]


class ImageReference(Body):
    """An image in an object, as OpenAI's clients send it."""

    image_url: str = Field(description="A data URI; nothing is fetched from a URL.")


class VideoBody(Body):
    """A video request."""

    prompt: str | None = Field(
        None, max_length=32_000, description="What is seen; models without text keep it and ignore it."
    )
    model: ShortText | None = Field(None, description="Id of a model; may be left out if there is only one.")
    seconds: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Length of the video, as a number or as text; 4 if nothing else gives it.",
    )
    size: Size | None = Field(
        None, description="WIDTHxHEIGHT: the model's resolution or a whole multiple of it."
    )
    input_reference: ImageReference | str | None = Field(
        None, description="The image to start from; the model's first start if left out."
    )
    num_frames: int | None = Field(None, ge=1, lt=2**31, strict=True, description="Frames of the video.")
    fps: float | None = Field(
        None, ge=0.1, le=240, allow_inf_nan=False, description="Of the video; the model's if left out."
    )
    num_inference_steps: int | None = Field(None, ge=1, strict=True, description="Denoise steps per chunk.")
    guidance_scale: float | None = Field(None, ge=0, allow_inf_nan=False, description="1 for none.")
    seed: int | None = Field(None, ge=0, lt=2**63, strict=True, description="Of all randomness.")
    actions: list[JsonValue] | None = Field(
        None,
        min_length=1,
        description="What happens in each frame; the last is repeated to the end of the video. The first "
        "action of a discrete space if left out.",
    )
    cache: str | dict[str, JsonValue] | None = Field(
        None, description="Name of a preset, or an object with a policy and its parameters."
    )


class VideoListQuery(BaseModel):
    """Query of ``GET /v1/videos``."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(20, ge=1, le=100)
    after: str | None = Field(None, max_length=64, description="Id after which the page begins.")
    order: Literal["asc", "desc"] = Field("desc", description="desc for newest first.")


def video_id(rollout_id: str) -> str:
    """The id under which a rollout is a video."""
    return VIDEO_PREFIX + rollout_id.removeprefix(ROLLOUT_PREFIX)


def rollout_id(video: str) -> str:
    """The id of a video's rollout; of no rollout at all if ``video`` is no video's id."""
    return ROLLOUT_PREFIX + video.removeprefix(VIDEO_PREFIX) if video.startswith(VIDEO_PREFIX) else ""


def form_fields(fields: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """The text fields of a form as the JSON body that they stand for.

    Numbers are read as numbers, ``actions`` and ``cache`` as JSON (``cache`` may be a bare name). Lists
    and objects may come in brackets as well, as OpenAI's clients write them: ``actions[]=NOOP``,
    ``cache[policy]=none``.

    Raises:
        ApiError: 422, a field comes twice or is no JSON.
    """
    data: dict[str, Any] = {}
    bracketed: dict[str, Any] = {}
    for name, text in fields:
        head, bracket, inner = name.partition("[")
        key = inner.removesuffix("]")
        if not bracket:
            if name in data:
                raise _refused(name, f"{name} was sent twice; send it once")
            data[name] = _form_value(name, text)
            continue
        kept = bracketed.setdefault(head, {} if key else [])
        if isinstance(kept, list) == bool(key) or key in kept:
            raise _refused(head, f"{head} was sent in two ways; send it once")
        if isinstance(kept, list):
            kept.append(_scalar(text))
        else:
            kept[key] = text if head == "input_reference" else _scalar(text)
    for name in data.keys() & bracketed.keys():
        raise _refused(name, f"{name} was sent in two ways; send it once")
    return data | bracketed


def _form_value(name: str, text: str) -> Any:
    if name in NUMBERS:
        return _scalar(text)
    if name not in JSON_FIELDS or (name == "cache" and not text.lstrip().startswith(("{", '"', "["))):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise _refused(name, f"{name} must be JSON text in a form") from None


def _scalar(text: str) -> Any:
    """A number or another JSON value if it is one, else the text."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return text if isinstance(value, (dict, list)) else value


def to_rollout(body: VideoBody, model: str, info: ModelInfo, *, max_frames: int) -> RolloutBody:
    """The rollout that makes a video.

    Args:
        body: what was sent.
        model: id of the model that makes it.
        info: the model's.
        max_frames: most frames of a rollout, checked before as many actions are written down.

    Raises:
        ApiError: 422; ``param`` names the field.
    """
    frames = _horizon(body, body.fps or info.fps, max_frames, info)
    metadata = {}
    if body.prompt:
        metadata[PROMPT] = body.prompt[:MAX_METADATA]
    if body.size is not None:
        _scale(body.size, info)
        metadata[SIZE] = body.size
    return RolloutBody.model_validate(
        {
            "model": model,
            "observation": _observation(body, info),
            "actions": _actions(body, info, frames),
            "conditioning": {PROMPT: body.prompt} if body.prompt and PROMPT in info.conditioning else {},
            "num_inference_steps": body.num_inference_steps,
            "guidance_scale": body.guidance_scale,
            "seed": body.seed,
            "cache": body.cache,
            "output": {"fps": body.fps},
            "metadata": metadata,
        }
    )


def _horizon(body: VideoBody, fps: float, max_frames: int, info: ModelInfo) -> int:
    """The number of frames to generate, from the first of num_frames, seconds and actions that is given.

    The video begins with the frames that the model shows of its observation. Seconds mean the nearest
    length that the model can generate.
    """
    exact = None if body.seconds is None else body.seconds * fps
    if body.num_frames is not None:
        source, exact_frames = "num_frames", float(body.num_frames)
        if exact is not None and abs(exact - exact_frames) >= 1:
            message = f"seconds: {body.seconds:g} s at {fps:g} fps are not {body.num_frames} frames"
            raise _refused("seconds", f"{message}; leave out seconds or num_frames")
    elif exact is not None:
        source, exact_frames = "seconds", exact
    elif body.actions is not None:
        source, exact_frames = "actions", float(len(body.actions) + info.observed_frames)
    else:
        source, exact_frames = "seconds", DEFAULT_SECONDS * fps
    if exact_frames > max_frames:
        message = f"{source}: {exact_frames:g} frames are too many; at most {max_frames}"
        raise ApiError(422, "too_many_frames", message, param=source)
    frames = math.floor(exact_frames + 0.5) - info.observed_frames
    if source == "seconds" and frames > 0 and info.chunk_lengths:
        frames = min(info.chunk_lengths, key=lambda length: abs(length - frames))
    if frames <= 0:
        raise _refused(source, f"{source}: shorter than one frame at {fps:g} fps")
    if body.actions is not None and len(body.actions) > frames:
        message = f"actions: {len(body.actions)} actions for a video of {frames} frames"
        raise _refused("actions", f"{message}; send at most one a frame")
    return frames


def _actions(body: VideoBody, info: ModelInfo, frames: int) -> list[JsonValue]:
    if body.actions is not None:
        return body.actions + body.actions[-1:] * (frames - len(body.actions))
    if isinstance(info.action_space, DiscreteActionSpace):
        return [info.action_space.names[0]] * frames
    if isinstance(info.action_space, CameraPoseActionSpace) and info.action_space.optional:
        return [None] * frames
    raise ApiError(422, "missing_field", f"actions: model {info.id!r} needs them", param="actions")


def _observation(body: VideoBody, info: ModelInfo) -> dict[str, Any]:
    reference = body.input_reference
    if reference is not None:
        image = reference.image_url if isinstance(reference, ImageReference) else reference
        return {"frames": [image]}
    if not info.starts:
        message = f"input_reference: model {info.id!r} has no start of its own; send an image"
        raise ApiError(422, "missing_field", message, param="input_reference")
    return {"start": info.starts[0]}


def _scale(size: str, info: ModelInfo) -> int:
    """How many times as large as the model's frames a video is.

    Raises:
        ApiError: 422, it is no whole number, or the video would be too large.
    """
    width, height = (int(side) for side in size.split("x"))
    own_height, own_width = info.resolution
    factor = height // own_height
    if not factor or (width, height) != (own_width * factor, own_height * factor):
        own = f"{own_width}x{own_height}"
        raise _refused(SIZE, f"size: must be {own} or a whole multiple of it, not {size}")
    if factor > 1 and max(width, height) > MAX_SIDE:
        raise _refused(SIZE, f"size: at most {MAX_SIDE} pixels a side, not {size}")
    return factor


def _refused(param: str, message: str) -> ApiError:
    return ApiError(422, "invalid_value", message, param=param)


def video_height(record: RolloutRecord, info: ModelInfo, min_height: int) -> int:
    """The height of a rollout's video: as asked for, else enlarged by a whole factor to ``min_height``."""
    height = info.resolution[0]
    try:
        return height * _scale(record.metadata[SIZE], info)
    except (KeyError, ValueError, ApiError):  # a rollout's own metadata may say anything
        return height * max(1, -(-min_height // height))


def video_json(
    record: RolloutRecord, info: ModelInfo, *, min_height: int, ttl_seconds: float
) -> dict[str, Any]:
    """The video object.

    Args:
        record: of the rollout.
        info: of its model.
        min_height: to which small videos are enlarged.
        ttl_seconds: how long a finished rollout is kept.
    """
    height = video_height(record, info, min_height)
    width = info.resolution[1] * height // info.resolution[0]
    stats, ended = record.stats, record.finished_at
    return {
        "id": video_id(record.id),
        "object": "video",
        "model": record.model,
        "status": _STATUS[record.status],
        "progress": _progress(record),
        "created_at": int(record.created_at),
        "completed_at": None if ended is None else int(ended),
        "expires_at": None if ended is None else int(ended + ttl_seconds),
        "prompt": record.metadata.get(PROMPT),
        "size": f"{width}x{height}",
        "seconds": f"{record.frames / (record.output.fps or info.fps):g}",
        "num_frames": record.frames,
        "seed": record.seed,
        "error": _error(record),
        "inference_time_s": (
            None if stats is None else round(stats.latency_seconds - stats.queue_seconds, 6)
        ),
        "rollout_id": record.id,
        "stats": {
            "policy": record.policy if stats is None else stats.policy,
            "replaced_preset": record.replaced_preset,
            "skip_ratio": None if stats is None else round(stats.skip_ratio, 6),
        },
    }


def _progress(record: RolloutRecord) -> int:
    """Per cent of the frames; 100 only once the video can be had."""
    if record.status == "succeeded":
        return 100
    return min(99, 100 * record.frames_done // record.frames)


def _error(record: RolloutRecord) -> dict[str, str] | None:
    if record.status == "cancelled":
        return {"code": "rollout_cancelled", "message": "the video was cancelled"}
    if record.error is None:
        return None
    error = in_video_terms(record.error)
    return {"code": error["code"], "message": error["message"]}


def in_video_terms(error: dict[str, Any]) -> dict[str, Any]:
    """An error of a rollout, ``{"code", "message", "param"}``, told of the fields of a video."""
    param, message = error.get("param"), error["message"]
    if param == "conditioning.prompt":
        name = PROMPT
    elif param is not None and param.startswith("observation"):
        name = "input_reference"
    else:
        return error
    return {**error, "param": name, "message": message.replace(param, name)}


@contextmanager
def naming_video_fields() -> Iterator[None]:
    """Errors of a rollout's request, raised inside, name the fields of a video."""
    try:
        yield
    except ApiError as error:
        named = in_video_terms({"code": error.code, "message": error.message, "param": error.param})
        raise ApiError(
            error.status, error.code, named["message"], param=named["param"], headers=error.headers
        ) from error
    except InvalidInput as error:
        named = in_video_terms({"code": error.code, "message": str(error), "param": error.param})
        raise InvalidInput(named["message"], param=named["param"], code=error.code) from error
