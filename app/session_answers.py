"""The shapes of what the service answers about sessions, for its OpenAPI description."""

from __future__ import annotations

from typing import Any, Literal

from typing_extensions import TypedDict

from app.answers import Page, Stats, Trouble


class SessionStats(TypedDict):
    """Denoise steps of a session."""

    steps_total: int
    steps_full: int
    steps_cached: int
    skip_ratio: float


class SessionAnswer(TypedDict):
    """A session."""

    id: str
    object: Literal["session"]
    model: str
    created_at: float
    expires_at: float
    seed: int
    num_inference_steps: int
    guidance_scale: float
    cache: str | dict[str, Any] | None
    policy: str
    output: dict[str, Any]
    action_space: dict[str, Any]
    frames_per_step: int
    frames: int
    committed_step_id: int | None
    rewind_from_frame: int
    parent: str | None
    websocket: str
    stats: SessionStats
    metadata: dict[str, str]


class SessionList(Page):
    """A page of sessions."""

    data: list[SessionAnswer]


class Frame(TypedDict):
    """A frame; its modalities come under their names."""

    index: int


class StepStats(Stats):
    """What a step took."""

    action_to_frame_ms: float | None


class StepAnswer(TypedDict):
    """A step of a session."""

    session_id: str
    step_id: int
    committed_step_id: int | None
    frames: list[Frame]
    stats: StepStats


class StepTrouble(TypedDict):
    """A step of several that could not be taken."""

    session_id: str
    error: Trouble


class StepList(TypedDict):
    """Steps of several sessions, in order."""

    object: Literal["list"]
    data: list[StepAnswer | StepTrouble]


class BranchAnswer(TypedDict):
    """What came of one sequence of actions."""

    index: int
    frames: list[Frame]
    stats: Stats | None
    error: Trouble | None


class PlanAnswer(TypedDict):
    """What came of several sequences of actions."""

    session_id: str
    object: Literal["plan"]
    branches: list[BranchAnswer]
