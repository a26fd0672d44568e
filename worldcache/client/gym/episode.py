"""One episode: a session, what was last seen of it, and what a step of it is worth."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import numpy as np

from worldcache.client.errors import ClientError
from worldcache.client.gym.config import Pictures
from worldcache.client.gym.world import World
from worldcache.client.session_types import Step
from worldcache.client.sync_sessions import Session

logger = logging.getLogger(__name__)

ENDINGS = ("session_gone", "session_full")
"""Codes of refusals that mean that a session takes no more steps."""


class Transition(NamedTuple):
    """What an environment answers to an action."""

    observation: Pictures
    reward: float
    terminated: bool
    truncated: bool
    info: dict[str, Any]


class Episode:
    """One episode.

    Args:
        world: that it is an episode of.
        session: a new one.

    Attributes:
        last_step: the latest, as the client had it; ``None`` before the first.
        length: steps since the observation that it began with.
        ended: it has terminated or was truncated.
    """

    def __init__(self, world: World, session: Session) -> None:
        self._world, self.session = world, session
        self.last_step: Step | None = None
        self.length = -1
        self.ended = False
        self._observation: Pictures | None = None

    @property
    def begun(self) -> bool:
        """There is something to be seen of it."""
        return self._observation is not None

    @property
    def rgb(self) -> np.ndarray[Any, Any]:
        """What was last seen, uint8 ``[H, W, 3]``."""
        assert self._observation is not None
        seen = self._observation
        return np.copy(seen["rgb"] if isinstance(seen, dict) else seen)

    def sent(self, action: Any) -> list[Any]:
        """The actions of its next step: the first one is the world's own.

        Raises:
            InvalidInput: the action is outside the space.
        """
        return [self._world.encode(action) if self.begun else self._world.reset_action]

    def judge(self, action: Any, step: Step) -> Transition:
        """What a step that was taken comes to; the episode stays as it is until :meth:`advance`.

        What the first one shows is what the episode begins with.
        """
        frames = self._world.pictures(step)
        reward, terminated = 0.0, False
        info: dict[str, Any] = {"frames": frames, "stats": _stats(step)}
        if not self.begun:
            info["seed"] = self.session.seed
        elif self._world.config.reward is not None:
            result = self._world.config.reward(self._observation, action, frames)
            value, over = result if isinstance(result, tuple) else (result, False)
            reward, terminated = float(value), bool(over)
        return Transition(_last(frames), reward, terminated, False, info)

    def advance(self, transition: Transition, step: Step) -> None:
        """Go on to what a step has come to."""
        self._observation, self.last_step = _copy(transition.observation), step
        self.length += 1
        self.ended = transition.terminated

    def undo(self, step: Step) -> None:
        """Take a step back that was taken, but not gone on to."""
        self.session.rewind(step.indices[0])

    def truncate(self, code: str) -> Transition:
        """The server takes no more steps of it; what was last seen stays."""
        assert self._observation is not None
        self.ended = True
        return Transition(_copy(self._observation), 0.0, False, True, {"ended": code})

    def close(self) -> None:
        """Close its session. One that cannot be closed expires."""
        try:
            self.session.close()
        except ClientError as error:
            logger.warning("session %s may not have been closed: %s", self.session.id, error)


def _stats(step: Step) -> dict[str, Any]:
    """What depends on the episode's seed and actions alone: no times."""
    stats = step.stats
    return {
        "steps_total": stats.steps_total,
        "steps_full": stats.steps_full,
        "steps_cached": stats.steps_cached,
        "skip_ratio": stats.skip_ratio,
        "decisions": tuple(chunk.decisions for chunk in stats.chunks),
    }


def _last(frames: Pictures) -> Pictures:
    """The newest frame, a copy."""
    if isinstance(frames, dict):
        return {name: np.copy(values[-1]) for name, values in frames.items()}
    return np.copy(frames[-1])


def _copy(observation: Pictures) -> Pictures:
    if isinstance(observation, dict):
        return {name: np.copy(values) for name, values in observation.items()}
    return np.copy(observation)
