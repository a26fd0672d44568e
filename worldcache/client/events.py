"""A stream's events, as types."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from worldcache.client.errors import (
    ClientError,
    DeadlineExceeded,
    NotFound,
    RolloutCancelled,
    RolloutError,
    RolloutFailed,
    UnexpectedAnswer,
)
from worldcache.client.exchange import read_answer
from worldcache.client.media import decode_picture
from worldcache.client.sse import ServerEvent
from worldcache.client.types import ChunkStats, RolloutData

RolloutT = TypeVar("RolloutT", bound=RolloutData)

_ENDINGS: Mapping[str, type[RolloutError]] = {
    "rollout_cancelled": RolloutCancelled,
    "deadline_exceeded": DeadlineExceeded,
    "rollout_failed": RolloutFailed,
    "out_of_memory": RolloutFailed,
}
"""Codes of rollouts that ended without success; others are failures as well."""


@dataclass(frozen=True)
class Status:
    """The rollout has got so far: ``queued``, then ``running``."""

    id: int
    status: str
    rollout_id: str


@dataclass(frozen=True)
class Picture:
    """A picture as it was sent.

    Attributes:
        scale: what a count of a map is in the modality's unit; ``None`` for other pictures.
    """

    media_type: str
    data: bytes
    scale: float | None

    def decode(self) -> NDArray[Any]:
        """As an array; needs pillow."""
        return decode_picture(self.data, self.scale)


@dataclass(frozen=True)
class Frame:
    """One frame.

    Attributes:
        index: in the rollout.
        pictures: by modality.
        matrices: of the modalities that are no pictures, such as camera poses.
    """

    id: int
    index: int
    chunk: int
    pictures: Mapping[str, Picture]
    matrices: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    @cached_property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """By modality: ``rgb`` uint8 ``[H, W, 3]``, ``depth`` float32 ``[H, W]``.

        Decoded when first asked for, which needs pillow. A map that was sent as JPEG is only a
        picture of it, uint8 ``[H, W, 3]``.
        """
        return {name: picture.decode() for name, picture in self.pictures.items()} | dict(self.matrices)


@dataclass(frozen=True)
class Chunk:
    """All frames of a chunk have been sent; this is how it was denoised."""

    id: int
    stats: ChunkStats


@dataclass(frozen=True)
class Done(Generic[RolloutT]):
    """The rollout has succeeded."""

    id: int
    rollout: RolloutT


Event: TypeAlias = Status | Frame | Chunk | Done[RolloutT]


def read_event(sent: ServerEvent, wrap: Callable[[Any], RolloutT]) -> Event[RolloutT] | ClientError | None:
    """An event as its type, or the error that it is; ``None`` for one that a newer server may send.

    Args:
        sent: by the server.
        wrap: makes a rollout of its data.

    Raises:
        UnexpectedAnswer: it is none of this API.
    """
    if sent.name not in ("status", "frame", "chunk", "done", "error"):
        return None
    try:
        data = json.loads(sent.data)
        if sent.name == "error":
            return _error(data, wrap)
        number = int(sent.id or "")
        if sent.name == "status":
            return Status(number, str(data["status"]), str(data["id"]))
        if sent.name == "frame":
            index, chunk = int(data["index"]), int(data["chunk"])
            return Frame(number, index, chunk, read_pictures(data), read_matrices(data))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnexpectedAnswer(f"this is no {sent.name} event: {sent.data[:200]}") from error
    if sent.name == "chunk":
        return Chunk(number, read_answer(ChunkStats, data))
    return Done(number, wrap(data))


def read_pictures(data: Mapping[str, Any]) -> dict[str, Picture]:
    """The pictures of a frame, which are its data URIs, by modality."""
    return {
        name: _picture(value, data.get(f"{name}_scale"))
        for name, value in data.items()
        if isinstance(value, str) and value.startswith("data:")
    }


def read_matrices(data: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """The matrices of a frame, which are its lists, by modality: float32."""
    return {name: np.array(value, np.float32) for name, value in data.items() if isinstance(value, list)}


def ended_badly(code: str, message: str, rollout: RolloutData | None) -> RolloutError:
    """The error that the end of a rollout is."""
    return _ENDINGS.get(code, RolloutFailed)(code, message, rollout)


def is_ending(code: str) -> bool:
    """The code says how a rollout ended, not why a request was refused."""
    return code in _ENDINGS


def _picture(uri: str, scale: float | None) -> Picture:
    head, _, text = uri.partition(",")
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError("a picture is not base64") from error
    return Picture(head.removeprefix("data:").removesuffix(";base64"), data, scale)


def _error(data: Any, wrap: Callable[[Any], RolloutT]) -> ClientError:
    envelope = data["error"]
    code, message = str(envelope["code"]), str(envelope["message"])
    if "rollout" in data:
        return ended_badly(code, message, wrap(data["rollout"]))
    return NotFound(404, code, message, envelope.get("param"), envelope.get("request_id"))
