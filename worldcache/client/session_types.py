"""Sessions, their steps and plans, as types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from worldcache.client.errors import UnexpectedAnswer
from worldcache.client.events import Picture, read_matrices, read_pictures
from worldcache.client.exchange import read_answer
from worldcache.client.types import ActionSpace, Answer, Problem, RolloutStats


class PicturesOutput(Answer):
    """How a session's frames are answered; ``modalities`` is ``None`` for all of the model's."""

    format: str
    modalities: tuple[str, ...] | None = None


class SessionStats(Answer):
    """Denoise steps of all steps that were taken."""

    steps_total: int = 0
    steps_full: int = 0
    steps_cached: int = 0
    skip_ratio: float = 0.0


class SessionData(Answer):
    """A session as the server described it at one moment.

    Attributes:
        cache: as it was asked for; ``policy`` is what that stands for.
        num_frames: so far; ``frames`` on the wire.
        committed_step_id: of the last step; ``None`` before the first.
        rewind_from_frame: the earliest one that it can go back to, frame 0 apart.
        parent: id of the session that it was forked from.
    """

    id: str
    model: str
    created_at: float
    expires_at: float
    seed: int
    num_inference_steps: int
    guidance_scale: float
    cache: str | Mapping[str, Any] | None = None
    policy: str
    output: PicturesOutput
    action_space: ActionSpace
    frames_per_step: int
    num_frames: int = Field(alias="frames")
    committed_step_id: int | None = None
    rewind_from_frame: int = 0
    parent: str | None = None
    stats: SessionStats = Field(default_factory=SessionStats)
    metadata: Mapping[str, str] = Field(default_factory=dict)


class StepStats(RolloutStats):
    """What a step or a branch took.

    Attributes:
        action_to_frame_ms: from the request's arrival to the first frame, of steps.
    """

    action_to_frame_ms: float | None = None


@dataclass(frozen=True)
class FrameSet:
    """Frames that follow each other.

    Attributes:
        indices: of the frames in their session.
        pictures: of each frame by modality.
        matrices: of each frame, of the modalities that are no pictures.
    """

    indices: tuple[int, ...]
    pictures: tuple[Mapping[str, Picture], ...]
    matrices: tuple[Mapping[str, NDArray[Any]], ...]

    @cached_property
    def frames(self) -> dict[str, NDArray[Any]]:
        """By modality: ``rgb`` uint8 ``[F, H, W, 3]``, ``depth`` float32 ``[F, H, W]`` in the model's unit.

        Decoded when first asked for, which needs pillow. A map that was sent as JPEG is only a picture of it,
        uint8 ``[F, H, W, 3]``. Empty if no frames were asked for.
        """
        if not self.pictures:
            return {}
        pictures, matrices = self.pictures, self.matrices
        shown = {name: np.stack([frame[name].decode() for frame in pictures]) for name in pictures[0]}
        return shown | {name: np.stack([frame[name] for frame in matrices]) for name in matrices[0]}


@dataclass(frozen=True)
class Step(FrameSet):
    """A step that has become part of its session's past.

    Attributes:
        step_id: its number; the session's last one was ``committed_step_id`` when this was answered.
    """

    session_id: str
    step_id: int
    committed_step_id: int
    stats: StepStats


@dataclass(frozen=True)
class Branch(FrameSet):
    """What would come of one candidate of a plan.

    Attributes:
        index: of the candidate.
        stats: ``None`` if it failed.
        error: why it failed.
    """

    index: int
    stats: StepStats | None
    error: Problem | None


@dataclass(frozen=True)
class Plan:
    """What would come of each candidate, in order."""

    session_id: str
    branches: tuple[Branch, ...]


def read_step(data: Any) -> Step:
    """A step's answer.

    Raises:
        UnexpectedAnswer: it is something else.
    """
    try:
        shown = _read_frames(data["frames"])
        session_id, stats = str(data["session_id"]), data["stats"]
        step_id, committed = int(data["step_id"]), int(data["committed_step_id"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnexpectedAnswer(f"this is no step: {str(data)[:200]}") from error
    return Step(*shown, session_id, step_id, committed, read_answer(StepStats, stats))


def read_plan(data: Any) -> Plan:
    """A plan's answer.

    Raises:
        UnexpectedAnswer: it is something else.
    """
    try:
        return Plan(str(data["session_id"]), tuple(_read_branch(branch) for branch in data["branches"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnexpectedAnswer(f"this is no plan: {str(data)[:200]}") from error


def _read_branch(data: Mapping[str, Any]) -> Branch:
    stats, error = data["stats"], data["error"]
    return Branch(
        *_read_frames(data["frames"]),
        int(data["index"]),
        None if stats is None else read_answer(StepStats, stats),
        None if error is None else read_answer(Problem, error),
    )


def _read_frames(
    frames: Sequence[Mapping[str, Any]],
) -> tuple[tuple[int, ...], tuple[Mapping[str, Picture], ...], tuple[Mapping[str, NDArray[Any]], ...]]:
    """Their indices, their pictures and their matrices."""
    return (
        tuple(int(frame["index"]) for frame in frames),
        tuple(read_pictures(frame) for frame in frames),
        tuple(read_matrices(frame) for frame in frames),
    )
