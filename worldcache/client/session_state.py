"""What a client knows of its session, and which step comes next. Does neither input nor output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from worldcache.client.errors import ApiError
from worldcache.client.exchange import read_answer
from worldcache.client.retries import is_temporary
from worldcache.client.session_types import SessionData, Step
from worldcache.client.types import ActionSpace

STEP_IN_PROGRESS = "step_in_progress"


@dataclass(frozen=True)
class OpenStep:
    """A step that was asked for, and of which it is not known whether it was taken."""

    step_id: int
    actions: bytes


class SessionState:
    """A session's description, kept up to date by the answers that concern it.

    Args:
        data: the session, as the server describes it.

    Attributes:
        open_step: that was asked for without an answer.
        stale: a live connection has moved the session on, and may have left a step on its way.
    """

    def __init__(self, data: Any) -> None:
        self.data = read_answer(SessionData, data)
        self.open_step: OpenStep | None = None
        self.stale = False

    @property
    def next_step_id(self) -> int:
        committed = self.data.committed_step_id
        return 0 if committed is None else committed + 1

    def described(self, data: Any) -> None:
        """The server has described it anew."""
        self.data = read_answer(SessionData, data)
        if self.open_step is not None and self.open_step.step_id < self.next_step_id:
            self.open_step = None  # it was taken

    def went_back(self, data: Any) -> None:
        """It was rewound: no step is on its way, and whatever was open is not part of it any more."""
        self.open_step, self.stale = None, False
        self.described(data)

    def begin_step(self, actions: bytes) -> int:
        """A step is asked for; its number."""
        if self.open_step is None:
            self.open_step = OpenStep(self.next_step_id, actions)
        assert self.open_step.actions == actions
        return self.open_step.step_id

    def stepped(self, step: Step) -> None:
        """A step was answered."""
        self.open_step = None
        frames = (step.committed_step_id + 1) * self.data.frames_per_step
        changes = {"committed_step_id": step.committed_step_id, "num_frames": frames}
        self.data = self.data.model_copy(update=changes)

    def step_refused(self, error: ApiError) -> None:
        """A step was refused, and is over unless an earlier attempt may have been served."""
        if error.status < 500 and not is_temporary(error) and error.code != STEP_IN_PROGRESS:
            self.open_step = None


class SessionView:
    """What a session looks like."""

    def __init__(self, data: Any) -> None:
        self._state = SessionState(data)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} of {self.model} at frame {self.num_frames}>"

    @property
    def data(self) -> SessionData:
        """All that the server last said about it, with the frames and steps since then counted."""
        return self._state.data

    @property
    def id(self) -> str:
        return self.data.id

    @property
    def model(self) -> str:
        return self.data.model

    @property
    def action_space(self) -> ActionSpace:
        """What it can be told to do in one frame."""
        return self.data.action_space

    @property
    def frames_per_step(self) -> int:
        return self.data.frames_per_step

    @property
    def num_frames(self) -> int:
        """Frames so far."""
        return self.data.num_frames

    @property
    def next_step_id(self) -> int:
        """Number of the next step, which this session sends by itself."""
        return self._state.next_step_id

    @property
    def seed(self) -> int:
        return self.data.seed

    @property
    def cache(self) -> str | Mapping[str, Any] | None:
        """As it was asked for."""
        return self.data.cache

    @property
    def metadata(self) -> Mapping[str, str]:
        return self.data.metadata


def session_path(session_id: str, *rest: str) -> str:
    return "/".join(("/v1/sessions", quote(session_id, safe=""), *rest))
