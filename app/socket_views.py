"""What a session's WebSocket sends, and the pictures in it. Encoding takes milliseconds."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from app.action_line import Batch, Mode
from app.errors import ApiError, error_body
from app.media import MEDIA_TYPES, encode_picture
from app.outbox import OutgoingFrame, Picture
from app.session_store import CommittedStep
from app.session_views import step_stats
from app.views import count_scale, seconds_to_ms
from worldcache.core import ChunkStats, ModelInfo
from worldcache.errors import InvalidInput

NO_STEP = -1
"""``committed_step_id`` of a session at frame 0, where messages have no null."""


@dataclass(frozen=True)
class SocketOptions:
    """What a client asked for when it connected.

    Attributes:
        format: ``png`` or ``jpeg``.
        details: statistics and token maps come before the frames of each step.
    """

    mode: Mode
    modalities: tuple[str, ...]
    format: str
    details: bool


@dataclass(frozen=True)
class TakenStep:
    """A step that was committed, and what it was to show."""

    batch: Batch
    step: CommittedStep


def to_text(message: Mapping[str, Any]) -> str:
    """A message as it is sent."""
    return json.dumps(message, separators=(",", ":"), allow_nan=False)


def error_text(
    error: ApiError | InvalidInput, request_id: str, seq: int | None, retry_after: float | None
) -> str:
    """An error as a message."""
    body = error_body(error.code, str(error), error.param, request_id)
    return to_text({"type": "error", **body, "seq": seq, "retry_after": retry_after})


def outgoing_frames(taken: TakenStep, options: SocketOptions, info: ModelInfo) -> Iterator[OutgoingFrame]:
    """A step's frames, each encoded when it is asked for; blocks."""
    outcome = taken.step.outcome
    preface = step_text(taken) if options.details else None
    for place, action in enumerate(taken.batch.shown):
        chunk = outcome.stats.chunks[place // info.chunk_frames]
        common = {
            "type": "frame",
            "index": outcome.first_frame + place,
            "seq": action.seq,
            "skip_ratio": round(1 - chunk.steps_full / len(chunk.decisions), 6),
            "decisions": chunk.decisions,
            "mime": MEDIA_TYPES[options.format],
        }
        pictures: list[Picture] = []
        for name in options.modalities:
            modality = info.modality(name)
            data = encode_picture(outcome.frames[name][place], modality, options.format)
            scale = count_scale(modality, options.format)
            header = {**common, "modality": name, "bytes": len(data)}
            pictures.append(Picture(header if scale is None else {**header, "scale": scale}, data))
        yield OutgoingFrame(pictures, action, taken, preface)
        preface = None


def picture_text(frame: OutgoingFrame, place: int) -> str:
    """What comes before a picture; frames that were dropped are told with the first picture behind them."""
    header, seconds = frame.pictures[place].header, frame.action.shown_after
    dropped = 0 if place else frame.dropped
    return to_text({**header, "action_to_frame_ms": seconds_to_ms(seconds), "dropped": dropped})


def step_text(taken: TakenStep) -> str:
    """A step with its statistics, as a message."""
    outcome = taken.step.outcome
    return to_text(
        {
            "type": "step",
            "step_id": taken.step.step_id,
            "committed_step_id": taken.step.step_id,
            "first_frame": outcome.first_frame,
            "frames": outcome.frame_count,
            "seq": taken.batch.seq,
            "stats": step_stats(taken.step),
            "token_maps": [token_map for chunk in outcome.stats.chunks for token_map in token_maps(chunk)],
        }
    )


def token_maps(chunk: ChunkStats) -> list[dict[str, Any]]:
    """The class of every token of a chunk, by modality; nothing if there are no classes or no grid.

    Of two guidance branches, the conditional one.
    """
    maps: list[dict[str, Any]] = []
    if chunk.token_map is None:
        return maps
    first = 0
    for name, (times, rows, columns) in chunk.token_grids.items():
        last = first + times * rows * columns
        classes = chunk.token_map[first:last].astype(np.uint8).tobytes()
        maps.append(
            {
                "chunk": chunk.index,
                "modality": name,
                "grid": [times, rows, columns],
                "classes": base64.b64encode(classes).decode(),
            }
        )
        first = last
    return maps
