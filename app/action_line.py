"""Actions that wait for their step, and which of them a step takes. Knows nothing of sockets or models."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from pydantic import JsonValue

from app.errors import ApiError
from worldcache.errors import InvalidInput

Mode: TypeAlias = Literal["lockstep", "free"]

MAX_WAITING = 64
"""Messages that may wait."""


@dataclass(eq=False)
class SentAction:
    """One message with actions.

    Attributes:
        seq: as the client numbers it.
        arrived: by ``time.monotonic()``.
        shown_after: seconds from then until the first frame that shows it was sent; ``None`` before.
    """

    seq: int
    arrived: float
    shown_after: float | None = None


@dataclass(frozen=True)
class Waiting:
    """A message in the line.

    Attributes:
        values: its actions.
        alone: it is a step of its own in either mode.
    """

    action: SentAction
    values: tuple[JsonValue, ...]
    alone: bool


@dataclass(frozen=True)
class Batch:
    """What one step takes.

    Attributes:
        values: an action for each frame.
        shown: for each frame, the last message that it shows.
        taken: the messages that left the line for it; none if an action is only held.
    """

    values: tuple[JsonValue, ...]
    shown: tuple[SentAction, ...]
    taken: tuple[Waiting, ...]

    @property
    def seq(self) -> int:
        """Of the last message that it shows."""
        return self.shown[-1].seq

    @property
    def arrived(self) -> float | None:
        """When the first of the messages came; ``None`` if there is none."""
        return self.taken[0].action.arrived if self.taken else None


class ActionLine:
    """The waiting actions of one socket.

    Args:
        mode: in ``lockstep`` each message is a step; in ``free`` single actions share one, a frame each,
            and the last one is held while nothing waits.
        frames_per_step: of the session.
    """

    def __init__(self, mode: Mode, frames_per_step: int) -> None:
        self._mode, self._frames = mode, frames_per_step
        self._waiting: deque[Waiting] = deque()
        self._held: tuple[JsonValue, SentAction] | None = None
        self._last_seq = -1

    @property
    def holding(self) -> bool:
        """Whether there is something to do although nothing waits."""
        return self._mode == "free" and self._held is not None

    def add(self, seq: int, values: Sequence[JsonValue], arrived: float, *, alone: bool) -> None:
        """Let a message wait.

        Args:
            seq: of the message, greater than the one before.
            values: its actions.
            arrived: by ``time.monotonic()``.
            alone: it is a step of its own in either mode.

        Raises:
            ApiError, InvalidInput: it is not taken; its number may be used again.
        """
        if seq <= self._last_seq:
            raise InvalidInput(f"seq: {seq} must be greater than {self._last_seq}", param="seq")
        if len(values) > self._frames:
            message = f"actions: at most {self._frames} of them, one a frame; not {len(values)}"
            raise InvalidInput(message, param="actions")
        if len(self._waiting) >= MAX_WAITING:
            message = f"{MAX_WAITING} actions wait already; send this one again after some frames"
            raise ApiError(429, "too_many_actions", message, param="seq")
        self._last_seq = seq
        self._waiting.append(Waiting(SentAction(seq, arrived), tuple(values), alone))

    def take(self) -> Batch | None:
        """What the step that begins now takes; ``None`` if there is nothing to do."""
        taken: list[Waiting] = []
        while self._waiting and self._may_take(self._waiting[0], taken):
            taken.append(self._waiting.popleft())
        pairs = [(value, one.action) for one in taken for value in one.values]
        if pairs:
            self._held = pairs[-1]
        elif not self.holding:
            return None
        assert self._held is not None
        pairs += [self._held] * (self._frames - len(pairs))
        values, shown = zip(*pairs, strict=True)
        return Batch(values, shown, tuple(taken))

    def put_back(self, batch: Batch) -> None:
        """What was taken is first in line again."""
        self._waiting.extendleft(reversed(batch.taken))

    def clear(self) -> int:
        """Forget what waits, and what was held; returns how many messages waited."""
        dropped = len(self._waiting)
        self._waiting.clear()
        self._held = None
        return dropped

    def _may_take(self, message: Waiting, taken: Sequence[Waiting]) -> bool:
        """Whether a message joins those that a step has taken so far."""
        if not taken:
            return True
        apart = self._mode == "lockstep" or message.alone or taken[0].alone
        return not apart and len(taken) < self._frames
