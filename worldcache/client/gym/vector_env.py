"""Many environments that take their steps together."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import numpy as np
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate
from numpy.typing import NDArray

from worldcache.client.errors import InvalidInput
from worldcache.client.gym.config import WorldConfig, WorldFields
from worldcache.client.gym.env import RENDER_MODES, check_render_mode
from worldcache.client.gym.episode import Transition
from worldcache.client.gym.group import EpisodeGroup
from worldcache.client.gym.world import World
from worldcache.client.session_types import Step
from worldcache.client.sync_client import Client
from worldcache.client.sync_sessions import Session
from worldcache.client.types import ModelDescription

RESET_MASK = "reset_mask"


class WorldVectorEnv(VectorEnv[Any, Any, NDArray[Any]]):
    """Environments of one model, whose steps are one request and share the server's batches.

    Environment ``i`` does what a :class:`WorldEnv` with the ``i``-th seed does.

    Args:
        model: id of a model.
        num_envs: how many.
        base_url: of the server.
        api_key: if it wants one.
        client: to use instead of one of its own; stays open when the environments are closed.
        max_episode_steps: after which an episode is truncated.
        autoreset_mode: what happens to an episode that has ended: ``NextStep``, the next step begins another
            one, with the others' steps; ``SameStep``, this one does, with a request more; ``Disabled``,
            nothing until ``reset(options={"reset_mask": ...})``.
        render_mode: ``rgb_array`` or ``None``.
        fields: how they are played, see :class:`WorldFields`.

    Raises:
        InvalidInput: no environments can be made of that.
        ApiError: the server refused them.
        ConnectionFailed: the server does not answer.
    """

    def __init__(
        self,
        model: str,
        num_envs: int = 1,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        client: Client | None = None,
        max_episode_steps: int | None = None,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        **fields: Unpack[WorldFields],
    ) -> None:
        self.closed = True  # there is nothing to close before the end of this
        check_render_mode(render_mode)
        for name, value in (("num_envs", num_envs), ("max_episode_steps", max_episode_steps)):
            if value is not None and value < 1:
                raise InvalidInput(f"{name} must be at least 1, not {value}")
        self._mode = _read_mode(autoreset_mode)
        self._world = World(WorldConfig(model, **fields), base_url, api_key, client)
        self.num_envs, self.render_mode = num_envs, render_mode
        self.single_observation_space = self._world.observation_space
        self.single_action_space = self._world.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.metadata = {
            "render_modes": list(RENDER_MODES),
            "render_fps": self._world.steps_per_second,
            "autoreset_mode": self._mode,
        }
        self._group = EpisodeGroup(self._world, num_envs, max_episode_steps)
        self._observations: list[Any] = [None] * num_envs
        self._taken: list[Transition] | None = None
        self._finalize = weakref.finalize(self, _close, self._group, self._world)
        self.closed = False

    @property
    def model(self) -> ModelDescription:
        """As the server describes it: names of the actions, starts, presets."""
        return self._world.model

    @property
    def sessions(self) -> tuple[Session, ...]:
        """Of the episodes, to plan with or to fork; steps are the environments' alone."""
        return tuple(episode.session for episode in self._group.running())

    @property
    def last_steps(self) -> tuple[Step | None, ...]:
        """The latest, with all that the server said about them: times, too."""
        return tuple(episode.last_step for episode in self._group.running())

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Begin an episode in every environment, and generate their first frames.

        Args:
            seed: of each environment's generator; a number stands for itself and those that follow.
            options: as of :meth:`WorldEnv.reset`; ``start`` may also be a list with one for each. With
                ``reset_mask``, a bool array ``[num_envs]``, only environments where it is true begin anew.
        """
        if self.closed:
            raise ClosedEnvironmentError("these environments are closed; make others")
        rest = dict(options or {})
        chosen = self._masked(rest.pop(RESET_MASK, None))
        each = self._options(rest)
        seeds = self._seeds(seed)
        for index in chosen:
            if (value := seeds[index]) is not None:
                self._group.seed(index, value)
        self._taken = None
        infos = self._begin({index: each[index] for index in chosen}, {})
        return self._batch(), infos

    def step(self, actions: Any) -> tuple[Any, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Take a step in every environment, with one request.

        Args:
            actions: one for each.

        Returns:
            As of :meth:`WorldEnv.step`, one for each.

        Raises:
            InvalidInput: an action is outside the space.
            StepsFailed, ApiError, ConnectionFailed: no environment took a step, or with ``SameStep`` the
                episodes that follow could not be begun; call it again, which takes no step twice.
        """
        chosen = list(iterate(self.action_space, actions))
        if len(chosen) != self.num_envs:
            raise InvalidInput(f"actions must have {self.num_envs} entries, not {len(chosen)}")
        for action in chosen:
            self._world.encode(action)
        if self._taken is None:
            self._follow()
            self._taken = self._group.step(chosen)
        transitions = self._taken
        infos: dict[str, Any] = {}
        followed: dict[int, Mapping[str, Any]] = {}
        for index, transition in enumerate(transitions):
            self._observations[index] = transition.observation
            ended = transition.terminated or transition.truncated
            if not (ended and self._mode is AutoresetMode.SAME_STEP):
                infos = self._add_info(infos, transition.info, index)
            else:
                final = {"final_obs": transition.observation, "final_info": transition.info}
                infos = self._add_info(infos, final, index)
                followed[index] = {}
        infos = self._begin(followed, infos)
        self._taken = None
        return (
            self._batch(),
            np.array([transition.reward for transition in transitions], np.float64),
            np.array([transition.terminated for transition in transitions], np.bool_),
            np.array([transition.truncated for transition in transitions], np.bool_),
            infos,
        )

    def render(self) -> tuple[Any, ...] | None:
        """What was last seen of each, uint8 ``[H, W, 3]``; ``None`` without a render mode."""
        return None if self.render_mode is None else tuple(episode.rgb for episode in self._group.running())

    def close_extras(self, **_: Any) -> None:
        """Close the sessions, and the connections if they are its own."""
        self._finalize()

    def _follow(self) -> None:
        """Open the episodes that follow those that have ended, which this step is to begin."""
        ended = [index for index, episode in enumerate(self._group.running()) if episode.ended]
        if ended and self._mode is not AutoresetMode.NEXT_STEP:
            raise ResetNeeded(f"episodes have ended in environments {ended}; reset them with reset_mask")
        for index in ended:
            self._group.open(index, {})

    def _begin(self, options: Mapping[int, Mapping[str, Any]], infos: dict[str, Any]) -> dict[str, Any]:
        """Begin an episode in each of some environments; ``infos`` with theirs."""
        for index, transition in self._group.begin(options).items():
            self._observations[index] = transition.observation
            infos = self._add_info(infos, transition.info, index)
        return infos

    def _batch(self) -> Any:
        empty: Any = create_empty_array(self.single_observation_space, self.num_envs, fn=np.zeros)
        return concatenate(self.single_observation_space, self._observations, empty)

    def _seeds(self, seed: int | Sequence[int | None] | None) -> Sequence[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, int | np.integer):
            return [int(seed) + index for index in range(self.num_envs)]
        return self._one_for_each("seed", seed)

    def _options(self, options: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
        """Of each environment."""
        start = options.get("start")
        if start is None or isinstance(start, str):
            return [options] * self.num_envs
        return [{**options, "start": name} for name in self._one_for_each("start", start)]

    def _one_for_each(self, name: str, values: Sequence[Any]) -> Sequence[Any]:
        if len(values) != self.num_envs:
            raise InvalidInput(f"{name} must have {self.num_envs} entries, not {len(values)}")
        return values

    def _masked(self, mask: NDArray[np.bool_] | None) -> list[int]:
        """The environments that a mask names; without one, all."""
        if mask is None:
            return list(range(self.num_envs))
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ or mask.shape != (self.num_envs,):
            raise InvalidInput(f"{RESET_MASK} must be a bool array [{self.num_envs}]")
        chosen = [int(index) for index in np.flatnonzero(mask)]
        if not chosen:
            raise InvalidInput(f"{RESET_MASK} must be true somewhere")
        if len(chosen) < self.num_envs:
            self._group.running()
        return chosen


def _close(group: EpisodeGroup, world: World) -> None:
    group.close()
    world.close()


def _read_mode(mode: str | AutoresetMode) -> AutoresetMode:
    try:
        return AutoresetMode(mode)
    except ValueError:
        modes = ", ".join(known.value for known in AutoresetMode)
        raise InvalidInput(f"autoreset_mode must be one of {modes}, not {mode!r}") from None
