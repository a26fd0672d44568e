"""Episodes that are played next to each other, with one request for a step of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding

from worldcache.client.errors import StepsFailed
from worldcache.client.gym.episode import ENDINGS, Episode, Transition
from worldcache.client.gym.world import World
from worldcache.client.session_types import Step
from worldcache.client.types import Problem


class EpisodeGroup:
    """An episode in each of several places, one after another in each.

    Args:
        world: that they are episodes of.
        size: how many places there are.
        max_length: steps after which an episode is truncated.
    """

    def __init__(self, world: World, size: int, max_length: int | None) -> None:
        self._world, self._max_length = world, max_length
        self._generators = [seeding.np_random()[0] for _ in range(size)]
        self._episodes: list[Episode | None] = [None] * size

    def seed(self, place: int, seed: int) -> None:
        """Seed the generator of a place."""
        self._generators[place] = seeding.np_random(seed)[0]

    def running(self) -> list[Episode]:
        """All of them.

        Raises:
            ResetNeeded: a place has none.
        """
        running = [episode for episode in self._episodes if episode is not None]
        if len(running) < len(self._episodes):
            raise ResetNeeded("not every environment has an episode; call reset first")
        return running

    def open(self, place: int, options: Mapping[str, Any]) -> Episode:
        """Open an episode in a place, whose first step is still to be taken, and close the one before."""
        self._leave(place)
        session = self._world.open(self._generators[place], options)
        episode = self._episodes[place] = Episode(self._world, session)
        return episode

    def begin(self, options: Mapping[int, Mapping[str, Any]]) -> dict[int, Transition]:
        """Open episodes, with the options of each place, and take their first steps."""
        if not options:
            return {}
        try:
            episodes = [self.open(place, chosen) for place, chosen in options.items()]
            transitions = self._take(episodes, [None] * len(episodes))
        except BaseException:
            for place in options:
                self._leave(place)
            raise
        return dict(zip(options, transitions, strict=True))

    def step(self, actions: Sequence[Any]) -> list[Transition]:
        """A step of every episode; of one that was just opened the first, whatever the action.

        Raises:
            StepsFailed: not all could be taken, so none was.
            ApiError, ConnectionFailed: none was.
            Exception: whatever the caller's ``reward`` raised; none was.
        """
        return self._take(self.running(), actions)

    def close(self) -> None:
        """Close all sessions."""
        for place in range(len(self._episodes)):
            self._leave(place)

    def _take(self, episodes: Sequence[Episode], actions: Sequence[Any]) -> list[Transition]:
        asked = [
            (episode.session, episode.sent(action)) for episode, action in zip(episodes, actions, strict=True)
        ]
        results: Sequence[Step | Problem]
        try:
            results = self._world.client.sessions.step_all(asked)
        except StepsFailed as failed:
            results = failed.steps
            if not all(_is_usable(*pair) for pair in zip(episodes, results, strict=True)):
                _undo(episodes, results)
                raise
        try:
            judged = [
                episode.judge(action, result) if isinstance(result, Step) else None
                for episode, action, result in zip(episodes, actions, results, strict=True)
            ]
        except BaseException:
            _undo(episodes, results)
            raise
        return [
            self._advance(episode, result, transition)
            for episode, result, transition in zip(episodes, results, judged, strict=True)
        ]

    def _advance(self, episode: Episode, result: Step | Problem, transition: Transition | None) -> Transition:
        if isinstance(result, Problem):
            return episode.truncate(result.code)
        assert transition is not None
        episode.advance(transition, result)
        if self._max_length is not None and episode.length >= self._max_length:
            episode.ended = True
            return transition._replace(truncated=True)
        return transition

    def _leave(self, place: int) -> None:
        episode, self._episodes[place] = self._episodes[place], None
        if episode is not None:
            episode.close()


def _is_usable(episode: Episode, result: Step | Problem) -> bool:
    """It was taken, or it is how an episode ends."""
    return isinstance(result, Step) or (episode.begun and result.code in ENDINGS)


def _undo(episodes: Sequence[Episode], results: Sequence[Step | Problem]) -> None:
    """Take back the steps that were taken."""
    for episode, result in zip(episodes, results, strict=True):
        if isinstance(result, Step):
            episode.undo(result)
