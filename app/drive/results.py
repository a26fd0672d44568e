"""What a drive finds, as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from app.drive.player import Track
from app.loadtest.measures import Spread, spread
from app.loadtest.results import Memory


@dataclass(frozen=True)
class Drive:
    """One session over a WebSocket. Times in seconds.

    Attributes:
        mode: ``lockstep`` or ``free``.
        seconds: that actions were sent for.
        actions, frames: that were sent and that came.
        steps: that they make.
        unseen: actions that no frame has shown.
        gaps, dropped: frames out of order, and dropped by the server.
        errors: that the server told.
        client: from sending an action to the first picture that shows it, as the client measured it.
        server: from the action's arrival until that picture was sent, as the server did.
        ratio: of the client's to the compute of the step that shows it.
        frames_per_second: between the first frame and the last one.
    """

    mode: str
    seconds: float
    actions: int
    frames: int
    steps: int
    unseen: int
    gaps: int
    dropped: int
    errors: Sequence[str]
    client: Spread
    server: Spread
    ratio: Spread
    frames_per_second: float

    @property
    def whole(self) -> bool:
        """Whether every action was shown and every frame came, in order."""
        return bool(self.frames) and not (self.unseen or self.gaps or self.dropped or self.errors)


def summarise_track(track: Track, mode: str, seconds: float, frames_per_step: int) -> Drive:
    """A track as figures."""
    lasted = track.frames[-1] - track.frames[0] if track.frames else 0.0
    return Drive(
        mode=mode,
        seconds=seconds,
        actions=len(track.sent),
        frames=len(track.frames),
        steps=len(track.frames) // frames_per_step,
        unseen=len(track.unseen),
        gaps=track.gaps,
        dropped=track.dropped,
        errors=track.errors,
        client=spread(track.waits),
        server=spread(list(track.told.values())),
        ratio=spread(track.ratios),
        frames_per_second=(len(track.frames) - frames_per_step) / lasted if lasted else 0.0,
    )


@dataclass(frozen=True)
class Background:
    """Rollouts that ran beside the sessions."""

    succeeded: int
    failed: int


@dataclass(frozen=True)
class Findings:
    """Everything.

    Attributes:
        about: model, machine and settings, for the head of the report.
        compute: seconds of a step's denoising and decoding over HTTP, with nothing else going on.
        lockstep, free: one session alone.
        rates: one session alone in free mode, by preset.
        fps: frames a second that the model was trained at.
        memory: of the server during lockstep and free; ``None`` if it was not watched.
        first_quarter, last_quarter: its means in MiB.
        together: two sessions and the background at once, the first in lockstep and the second free.
    """

    about: Mapping[str, Any]
    compute: Spread
    lockstep: Drive
    free: Drive
    rates: Mapping[str, Drive]
    fps: float
    memory: Memory | None
    first_quarter: float | None
    last_quarter: float | None
    together: Sequence[Drive]
    background: Background

    @property
    def drives(self) -> Mapping[str, Drive]:
        """All of them, by name."""
        return {
            "lock-step": self.lockstep,
            "free": self.free,
            **{f"free, `{preset}`": drive for preset, drive in self.rates.items()},
            "together, lock-step": self.together[0],
            "together, free": self.together[1],
        }

    def as_json(self) -> dict[str, Any]:
        """Everything, as plain data."""
        return asdict(self)
