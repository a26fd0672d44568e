"""One environment."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any, Unpack

import gymnasium
from gymnasium.error import ClosedEnvironmentError, ResetNeeded

from worldcache.client.errors import ApiError, InvalidInput
from worldcache.client.gym.config import WorldConfig, WorldFields
from worldcache.client.gym.episode import ENDINGS, Episode, Transition
from worldcache.client.gym.world import World
from worldcache.client.session_types import Step
from worldcache.client.sync_client import Client
from worldcache.client.sync_sessions import Session
from worldcache.client.types import ModelDescription

RENDER_MODES = ("rgb_array",)


class WorldEnv(gymnasium.Env[Any, Any]):
    """A model of a server as an environment. A step is one action and shows the last of its frames.

    Every episode is a session with a seed of its own, drawn from the environment's generator: the same
    ``reset(seed=)`` and actions give the same frames. The world has neither rewards nor ends: those are the
    caller's ``reward``.

    Args:
        model: id of a model.
        base_url: of the server.
        api_key: if it wants one.
        client: to use instead of one of its own; stays open when the environment is closed.
        render_mode: ``rgb_array`` or ``None``.
        fields: how it is played, see :class:`WorldFields`.

    Raises:
        InvalidInput: no environment can be made of that.
        ApiError: the server refused it.
        ConnectionFailed: the server does not answer.
    """

    metadata: dict[str, Any] = {"render_modes": list(RENDER_MODES)}  # noqa: RUF012

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        client: Client | None = None,
        render_mode: str | None = None,
        **fields: Unpack[WorldFields],
    ) -> None:
        check_render_mode(render_mode)
        self._world = World(WorldConfig(model, **fields), base_url, api_key, client)
        self.observation_space = self._world.observation_space
        self.action_space = self._world.action_space
        self.metadata = {**self.metadata, "render_fps": self._world.steps_per_second}
        self.render_mode = render_mode
        self._stage = _Stage(self._world)
        self._finalize = weakref.finalize(self, self._stage.close)

    @property
    def model(self) -> ModelDescription:
        """As the server describes it: names of the actions, starts, presets."""
        return self._world.model

    @property
    def session(self) -> Session:
        """Of the episode, to plan with or to fork; steps are the environment's alone."""
        return self._running().session

    @property
    def last_step(self) -> Step:
        """The latest, with all that the server said about it: times, too."""
        step = self._running().last_step
        assert step is not None
        return step

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin an episode, and generate its first frames.

        Args:
            seed: of the environment's generator, which draws the seed and the start of every episode.
            options: ``{"start": name}``, or ``{"frames": ..., "depth": ...}`` as a session takes them.

        Returns:
            The last of the first frames; ``info`` as of a step, and the session's ``seed``.
        """
        if not self._finalize.alive:
            raise ClosedEnvironmentError("this environment is closed; make another one")
        super().reset(seed=seed)
        self._stage.leave()
        episode = Episode(self._world, self._world.open(self.np_random, options))
        try:
            step = episode.session.step(episode.sent(None))
            begun = episode.judge(None, step)
        except BaseException:
            episode.close()
            raise
        episode.advance(begun, step)
        self._stage.episode = episode
        return begun.observation, begun.info

    def step(self, action: Any) -> Transition:
        """Take an action for ``frames_per_step`` frames.

        Returns:
            The last frame, the reward, whether the episode has terminated, whether it was truncated, because
            the session has expired or is full, and ``info``: all ``frames``, and ``stats`` of the denoising;
            of a truncated one only why it has ``ended``.

        Raises:
            InvalidInput: the action is outside the space.
            ApiError, ConnectionFailed: there was no step; it may be repeated.
            Exception: whatever ``reward`` raised; the step was taken back.
        """
        episode = self._running()
        try:
            step = episode.session.step(episode.sent(action))
        except ApiError as error:
            if error.code not in ENDINGS:
                raise
            return episode.truncate(error.code)
        try:
            transition = episode.judge(action, step)
        except BaseException:
            episode.undo(step)
            raise
        episode.advance(transition, step)
        return transition

    def render(self) -> Any:
        """What was last seen, uint8 ``[H, W, 3]``; ``None`` without a render mode."""
        return None if self.render_mode is None else self._running().rgb

    def close(self) -> None:
        """Close the session, and the connections if they are its own."""
        self._finalize()

    def _running(self) -> Episode:
        if self._stage.episode is None:
            raise ResetNeeded("there is no episode; call reset first")
        return self._stage.episode


class _Stage:
    """What has to be closed when an environment is, also one that nobody refers to any more.

    Args:
        world: of the environment.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self.episode: Episode | None = None

    def leave(self) -> None:
        """Close the episode."""
        if self.episode is not None:
            self.episode.close()
            self.episode = None

    def close(self) -> None:
        """Close everything."""
        self.leave()
        self._world.close()


def check_render_mode(render_mode: str | None) -> None:
    """Refuse what cannot be rendered.

    Raises:
        InvalidInput: it cannot.
    """
    if render_mode is not None and render_mode not in RENDER_MODES:
        raise InvalidInput(f"render_mode must be {', '.join(RENDER_MODES)} or None, not {render_mode!r}")
