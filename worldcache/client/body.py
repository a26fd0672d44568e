"""What a caller asks for, as the body of a request."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Required, TypeAlias, TypedDict

import numpy as np
from numpy.typing import NDArray

from worldcache.client.errors import InvalidInput
from worldcache.client.media import encode_npy, encode_png

Image: TypeAlias = NDArray[Any] | bytes | str | os.PathLike[str]
"""An array, a file's bytes, base64 or a data URI, or a path."""


FILE = (bytes, str, os.PathLike)


class TermFields(TypedDict, total=False):
    """What can be asked of rollouts and sessions. What is left out or ``None`` is the server's choice.

    Attributes:
        model: id of a model.
        start: name of a start that comes with the model; or else ``frames``, or an ``observation``.
        frames: what was seen, oldest first: uint8 ``[H, W, 3]`` or ``[F, H, W, 3]``, or pictures.
        depth: a map for each frame: ``[H, W]`` or ``[F, H, W]`` in the model's unit, or files.
        observation: as the HTTP API takes it, instead of the three above.
        conditioning: whatever else the model can be conditioned on.
        cache: name of a preset, or ``{"policy": ..., ...}`` with the policy's parameters.
        seed: of all randomness.
        num_inference_steps: denoise steps per chunk.
        guidance_scale: 1 for none.
        metadata: kept with it.
        output: ``{"format": ..., ...}``, or only the format's name.
    """

    model: Required[str]
    start: str | None
    frames: Image | Sequence[Image] | None
    depth: Image | Sequence[Image] | None
    observation: Mapping[str, Any] | None
    conditioning: Mapping[str, Any] | None
    cache: str | Mapping[str, Any] | None
    seed: int | None
    num_inference_steps: int | None
    guidance_scale: float | None
    metadata: Mapping[str, str] | None
    output: str | Mapping[str, Any] | None


class RolloutFields(TermFields, total=False):
    """What can be asked of a rollout.

    Attributes:
        actions: one entry per frame, in the model's action space: names, indices, vectors or poses; or left
            out, with a ``camera`` in ``conditioning``.
        deadline_ms: from the arrival of the request.
        priority: ``interactive``, ``standard`` or ``background``.
    """

    actions: Sequence[Any] | NDArray[Any] | None
    deadline_ms: float | None
    priority: str | None


class SessionFields(TermFields, total=False):
    """What can be asked of a session.

    Attributes:
        frames_per_step: a multiple of the model's ``chunk_frames``.
    """

    frames_per_step: int | None


def encode_rollout(fields: RolloutFields) -> bytes:
    """The body of a request for a rollout.

    Raises:
        TypeError: a field is unknown or missing.
        InvalidInput: no request can be made of a value.
    """
    return _encode(dict(fields), "rollout", RolloutFields, ("model",))


def encode_session(fields: SessionFields) -> bytes:
    """The body of a request for a session.

    Raises:
        TypeError: a field is unknown or missing.
        InvalidInput: no request can be made of a value.
    """
    return _encode(dict(fields), "session", SessionFields, ("model",))


def encode_json(body: Any) -> bytes:
    """Data, which may hold numpy's numbers and arrays, as JSON.

    Raises:
        InvalidInput: it cannot be.
    """
    try:
        return json.dumps(body, default=_plain, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"this cannot be sent as JSON: {error}") from error


def _encode(fields: Mapping[str, Any], noun: str, kind: type[Any], required: Sequence[str]) -> bytes:
    unknown = sorted(fields.keys() - (kind.__required_keys__ | kind.__optional_keys__))
    missing = [name for name in required if fields.get(name) is None]
    if unknown or missing:
        raise TypeError(f"a {noun} has no {', '.join(unknown)}" if unknown else f"give {', '.join(missing)}")
    given: dict[str, Any] = {name: value for name, value in fields.items() if value is not None}
    body = {name: value for name, value in given.items() if name not in ("start", "frames", "depth")}
    body["observation"] = _observation(given)
    if isinstance(body.get("output"), str):
        body["output"] = {"format": body["output"]}
    return encode_json(body)


def _observation(given: Mapping[str, Any]) -> Any:
    """The one of the ways to say where a rollout starts that was taken."""
    ways = [name for name in ("observation", "start", "frames") if name in given]
    if len(ways) != 1:
        raise InvalidInput(f"give one of observation, start and frames, not {' and '.join(ways) or 'none'}")
    if "depth" in given and ways != ["frames"]:
        raise InvalidInput("depth needs frames")
    if ways == ["observation"]:
        return given["observation"]
    if ways == ["start"]:
        return {"start": given["start"]}
    observation = {"frames": _files(given["frames"], 3, encode_png)}
    if "depth" in given:
        observation["depth"] = _files(given["depth"], 2, encode_npy)
    return observation


def _files(images: Any, axes: int, encode: Callable[[NDArray[Any]], bytes]) -> list[str]:
    """Images as base64; an array with ``axes`` axes is one of them."""
    single = images.ndim == axes if isinstance(images, np.ndarray) else isinstance(images, FILE)
    return [_file(image, encode) for image in ([images] if single else images)]


def _file(image: Image, encode: Callable[[NDArray[Any]], bytes]) -> str:
    if isinstance(image, str):
        return image
    if isinstance(image, np.ndarray):
        data = encode(image)
    elif isinstance(image, bytes):
        data = image
    elif isinstance(image, os.PathLike):
        data = Path(image).read_bytes()
    else:
        raise InvalidInput(f"an image is an array, bytes, base64 or a path, not {type(image).__name__}")
    return base64.b64encode(data).decode()


def _plain(value: object) -> Any:
    """Numpy's numbers and arrays, and mappings, as JSON has them."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is neither a number, a text, a list nor a dict")
