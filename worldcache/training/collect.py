"""Collects episodes of a ViZDoom scenario: frames, depth and the actions that led to them.

Knows nothing of models. Frames are rendered at 320x240 and averaged down to 64x48, so that thin
structures do not flicker.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FRAME_SIZE = (48, 64)
"""Height and width of stored frames, in pixels."""

DEPTH_QUANTILE = 0.999
"""Depth is scaled so that this quantile of the collected values becomes 1."""


@dataclass(frozen=True)
class Scenario:
    """A ViZDoom scenario as a discrete-action world.

    Attributes:
        name: ViZDoom's scenario file, without its ending.
        actions: action names; the first one presses nothing, the others are ViZDoom buttons.
        tics: game tics (1/35 s) per frame.
        hold: range of frames for which a random action is held.
        max_frames: frames after which an episode is cut.
        starts: observations that ship with a model of this world: a place, as a fraction of the way
            across the map's second axis, and the action that was held just before.
    """

    name: str
    actions: tuple[str, ...]
    tics: int
    hold: tuple[int, int] = (2, 12)
    max_frames: int = 200
    starts: Mapping[str, tuple[float, str]] = field(default_factory=dict)


SCENARIOS = {
    "basic": Scenario(
        "basic",
        ("NOOP", "MOVE_LEFT", "MOVE_RIGHT", "ATTACK"),
        tics=2,
        starts={
            "centre": (0.5, "NOOP"),
            "left": (0.75, "NOOP"),
            "right": (0.25, "NOOP"),
            "far_left": (1.0, "NOOP"),
            "far_right": (0.0, "NOOP"),
            "moving_left": (0.4, "MOVE_LEFT"),
            "moving_right": (0.6, "MOVE_RIGHT"),
            "firing": (0.5, "ATTACK"),
            "firing_left": (0.85, "ATTACK"),
            "firing_right": (0.15, "ATTACK"),
        },
    ),
    "health_gathering": Scenario(
        "health_gathering",
        ("NOOP", "TURN_LEFT", "TURN_RIGHT", "MOVE_FORWARD"),
        tics=4,
        starts={
            "centre": (0.5, "NOOP"),
            "near": (0.25, "NOOP"),
            "far": (0.75, "NOOP"),
            "walking": (0.5, "MOVE_FORWARD"),
            "walking_near": (0.2, "MOVE_FORWARD"),
            "walking_far": (0.8, "MOVE_FORWARD"),
            "turning_left": (0.4, "TURN_LEFT"),
            "turning_right": (0.6, "TURN_RIGHT"),
        },
    ),
}


@dataclass(frozen=True)
class Episode:
    """One stretch of play.

    Attributes:
        frames: uint8 ``[F, 48, 64, 4]``: red, green, blue and ViZDoom's depth buffer.
        actions: uint8 ``[F]``; ``actions[i]`` led from frame ``i - 1`` to frame ``i``.
        positions: float32 ``[F, 2]``, the player's map coordinates.
    """

    frames: NDArray[np.uint8]
    actions: NDArray[np.uint8]
    positions: NDArray[np.float32]


def open_game(scenario: Scenario, seed: int) -> Any:
    """A started ViZDoom game of this scenario (``vizdoom.DoomGame``)."""
    import vizdoom as vzd

    game = vzd.DoomGame()
    game.load_config(os.path.join(vzd.scenarios_path, f"{scenario.name}.cfg"))
    game.set_doom_config_path(str(Path(tempfile.mkdtemp(prefix="vizdoom-")) / "vizdoom.ini"))
    game.set_screen_resolution(vzd.ScreenResolution.RES_320X240)
    game.set_screen_format(vzd.ScreenFormat.RGB24)
    game.set_depth_buffer_enabled(True)
    game.set_window_visible(False)
    game.set_render_hud(False)
    game.set_render_weapon(True)
    game.set_available_buttons([getattr(vzd.Button, name) for name in scenario.actions[1:]])
    game.set_available_game_variables([vzd.GameVariable.POSITION_X, vzd.GameVariable.POSITION_Y])
    game.set_episode_timeout(1_000_000)
    game.add_game_args("+sv_cheats 1")
    game.set_seed(seed)
    game.init()
    return game


def observe(game: Any) -> tuple[NDArray[np.uint8], tuple[float, float]] | None:
    """The current frame (uint8 ``[48, 64, 4]``) and position, or ``None`` between episodes."""
    state = game.get_state()
    if state is None:
        return None
    image = np.concatenate([state.screen_buffer, state.depth_buffer[..., None]], -1).astype(np.float32)
    height, width = FRAME_SIZE
    blocks = image.reshape(height, image.shape[0] // height, width, image.shape[1] // width, 4)
    return blocks.mean((1, 3)).round().astype(np.uint8), tuple(state.game_variables[:2])


def random_actions(scenario: Scenario, rng: np.random.Generator) -> Iterator[int]:
    """Random actions, each held for a random number of frames.

    ``send(True)`` says that the last action changed nothing (the player stands at a wall): every
    other time a new action is drawn.
    """
    while True:
        action = int(rng.integers(len(scenario.actions)))
        for _ in range(int(rng.integers(scenario.hold[0], scenario.hold[1] + 1))):
            stuck = yield action
            if stuck and rng.random() < 0.5:
                break


def play(game: Any, scenario: Scenario, rng: np.random.Generator, frames: int) -> Episode | None:
    """Play one new episode of at most ``frames`` frames; ``None`` if it ended at once."""
    game.new_episode()
    game.send_game_command("god")
    game.send_game_command("infiniteammo")
    pressed = np.eye(len(scenario.actions))[:, 1:].tolist()
    actor: Any = random_actions(scenario, rng)
    action = next(actor)
    images: list[NDArray[np.uint8]] = []
    positions: list[tuple[float, float]] = []
    actions: list[int] = []
    while len(images) < frames and not game.is_episode_finished():
        game.make_action(pressed[action], scenario.tics)
        seen = observe(game)
        if seen is None:
            break
        images.append(seen[0])
        positions.append(seen[1])
        actions.append(action)
        moving = scenario.actions[action].startswith("MOVE")
        action = actor.send(moving and len(positions) > 2 and positions[-1] == positions[-2])
    if not images:
        return None
    return Episode(np.stack(images), np.array(actions, np.uint8), np.array(positions, np.float32))


def collect(
    scenario: Scenario, frames: int, seed: int, progress: Callable[[int], None] | None = None
) -> list[Episode]:
    """Play until ``frames`` frames are collected; ``progress`` is told the frames of each episode."""
    rng = np.random.default_rng(seed)
    game = open_game(scenario, seed)
    episodes: list[Episode] = []
    total = 0
    try:
        while total < frames:
            episode = play(game, scenario, rng, min(scenario.max_frames, frames - total))
            if episode is None or len(episode.frames) < 16:
                if frames - total < 16:
                    break
                continue
            episodes.append(episode)
            total += len(episode.frames)
            if progress:
                progress(len(episode.frames))
    finally:
        game.close()
    return episodes


def save_episodes(path: Path, episodes: list[Episode]) -> None:
    """Write episodes to one ``.npz``."""
    np.savez(
        path,
        frames=np.concatenate([e.frames for e in episodes]),
        actions=np.concatenate([e.actions for e in episodes]),
        positions=np.concatenate([e.positions for e in episodes]),
        lengths=np.array([len(e.frames) for e in episodes]),
    )


def load_episodes(path: Path) -> list[Episode]:
    """Read what :func:`save_episodes` wrote."""
    with np.load(path) as data:
        ends = np.cumsum(data["lengths"])[:-1]
        parts = zip(*(np.split(data[key], ends) for key in ("frames", "actions", "positions")), strict=True)
        return [Episode(*part) for part in parts]
