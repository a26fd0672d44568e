"""What a live connection receives, as types."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from worldcache.client.errors import UnexpectedAnswer
from worldcache.client.events import Picture
from worldcache.client.exchange import read_answer
from worldcache.client.session_types import SessionData, StepStats


@dataclass(frozen=True)
class Ready:
    """The connection stands: the first message, and again after each reconnection.

    Attributes:
        session: as it is now.
        unanswered: numbers of actions that were sent and not shown when the connection before was lost.
            They are not sent again: ``session.num_frames`` says how far the session got.
    """

    session: SessionData
    mode: str
    modalities: tuple[str, ...]
    format: str
    unanswered: tuple[int, ...]


@dataclass(frozen=True)
class LiveFrame:
    """One modality of one frame.

    Attributes:
        index: of the frame in its session.
        seq: number of the last action that it shows.
        action_to_frame_ms: from that action's arrival at the server to the first frame that showed it.
        skip_ratio: share of predicted denoise steps in its chunk.
        decisions: one letter for each of them, ``F`` computed or ``.`` predicted.
        dropped: frames just before it that were left out, as this client reads too slowly.
        picture: as it was sent.
    """

    index: int
    seq: int
    modality: str
    action_to_frame_ms: float | None
    skip_ratio: float
    decisions: str
    dropped: int
    picture: Picture

    @cached_property
    def array(self) -> NDArray[Any]:
        """``rgb`` uint8 ``[H, W, 3]``, ``depth`` float32 ``[H, W]`` in the model's unit.

        Decoded when first asked for, which needs pillow. A map that was sent as JPEG is only a picture of it,
        uint8 ``[H, W, 3]``.
        """
        return self.picture.decode()


@dataclass(frozen=True)
class TokenMap:
    """The class of every token of a chunk's modality.

    Attributes:
        chunk: of the step.
        classes: uint8 ``[T, h, w]``: 0 stable, 1 linear, 2 chaotic.
    """

    chunk: int
    modality: str
    classes: NDArray[np.uint8]


@dataclass(frozen=True)
class LiveStep:
    """A step whose frames come next; only with ``details``.

    Attributes:
        first_frame: index of the first of ``num_frames``.
        seq: number of the last action that it shows.
        token_maps: empty for policies that do not tell tokens apart.
    """

    step_id: int
    committed_step_id: int
    first_frame: int
    num_frames: int
    seq: int
    stats: StepStats
    token_maps: tuple[TokenMap, ...]


@dataclass(frozen=True)
class CacheChanged:
    """Steps use another cache from now on."""

    policy: str
    cache: str | Mapping[str, Any] | None


@dataclass(frozen=True)
class Paused:
    """No step begins until it is resumed.

    Attributes:
        reason: ``client`` asked for it; nothing was heard from it (``idle``); or a step failed (``error``).
    """

    reason: str


@dataclass(frozen=True)
class Resumed:
    """Steps begin again."""


@dataclass(frozen=True)
class Rewound:
    """The session went back, by a reset or a rewind.

    Attributes:
        num_frames: that it has now.
        committed_step_id: ``None`` at frame 0.
        dropped_actions: that had been waiting.
    """

    num_frames: int
    committed_step_id: int | None
    dropped_actions: int


@dataclass(frozen=True)
class Pong:
    """The answer to a ping, with its id."""

    id: int | str | None


@dataclass(frozen=True)
class Refusal:
    """The server did not do something. The connection stays open.

    Attributes:
        seq: number of the action that it is about, if it is about one.
        retry_after: seconds after which the server tries again by itself; ``None`` if it does not.
    """

    code: str
    message: str
    param: str | None
    request_id: str | None
    seq: int | None
    retry_after: float | None


LiveMessage: TypeAlias = (
    Ready | LiveFrame | LiveStep | CacheChanged | Paused | Resumed | Rewound | Pong | Refusal
)


def read_object(text: str) -> dict[str, Any]:
    """A text message as data.

    Raises:
        UnexpectedAnswer: it is no object.
    """
    try:
        data = json.loads(text)
    except ValueError:
        data = None
    if not isinstance(data, dict):
        raise UnexpectedAnswer(f"this is no message: {text[:200]}")
    return data


def read_message(data: Mapping[str, Any], image: bytes, unanswered: tuple[int, ...]) -> LiveMessage | None:
    """A message as its type; ``None`` for one that a newer server may send.

    Args:
        data: of the message.
        image: that followed it, if it is a frame.
        unanswered: actions that were lost with the connection before.

    Raises:
        UnexpectedAnswer: it is none of this API.
    """
    try:
        match data["type"]:
            case "frame":
                return _frame(data, image)
            case "step":
                return _step(data)
            case "ready":
                session = read_answer(SessionData, data["session"])
                return Ready(session, data["mode"], tuple(data["modalities"]), data["format"], unanswered)
            case "cache":
                return CacheChanged(str(data["policy"]), data["cache"])
            case "paused":
                return Paused(str(data["reason"]))
            case "resumed":
                return Resumed()
            case "reset" | "rewind":
                committed = int(data["committed_step_id"])
                kept = None if committed < 0 else committed
                return Rewound(int(data["frames"]), kept, int(data["dropped_actions"]))
            case "pong":
                return Pong(data.get("id"))
            case "error":
                return _refusal(data)
            case _:
                return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnexpectedAnswer(f"this is no message: {str(data)[:200]}") from error


def _frame(data: Mapping[str, Any], image: bytes) -> LiveFrame:
    elapsed, scale = data["action_to_frame_ms"], data.get("scale")
    return LiveFrame(
        index=int(data["index"]),
        seq=int(data["seq"]),
        modality=str(data["modality"]),
        action_to_frame_ms=None if elapsed is None else float(elapsed),
        skip_ratio=float(data["skip_ratio"]),
        decisions=str(data["decisions"]),
        dropped=int(data["dropped"]),
        picture=Picture(str(data["mime"]), image, None if scale is None else float(scale)),
    )


def _step(data: Mapping[str, Any]) -> LiveStep:
    return LiveStep(
        step_id=int(data["step_id"]),
        committed_step_id=int(data["committed_step_id"]),
        first_frame=int(data["first_frame"]),
        num_frames=int(data["frames"]),
        seq=int(data["seq"]),
        stats=read_answer(StepStats, data["stats"]),
        token_maps=tuple(_token_map(one) for one in data["token_maps"]),
    )


def _token_map(data: Mapping[str, Any]) -> TokenMap:
    classes = np.frombuffer(base64.b64decode(data["classes"], validate=True), np.uint8)
    return TokenMap(int(data["chunk"]), str(data["modality"]), classes.reshape(data["grid"]))


def _refusal(data: Mapping[str, Any]) -> Refusal:
    error = data["error"]
    return Refusal(
        code=str(error["code"]),
        message=str(error["message"]),
        param=error.get("param"),
        request_id=error.get("request_id"),
        seq=data.get("seq"),
        retry_after=data.get("retry_after"),
    )
