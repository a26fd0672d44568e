"""One environment against a running server around a small network."""

from __future__ import annotations

from typing import Any

import gymnasium
import httpx
import numpy as np
import pytest
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from gymnasium.spaces import Box, Dict, Discrete
from gymnasium.utils.env_checker import check_env

from tests.app.conftest import serving
from tests.gym.conftest import Make, sessions
from worldcache.client import BadRequest, Client, InvalidInput, NotFound
from worldcache.client.gym import WorldEnv


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("depth", [False, True])
def test_gymnasium_finds_nothing_wrong(server: httpx.Client, depth: bool) -> None:
    env = gymnasium.make(
        "WorldCache/World-v0",
        base_url=str(server.base_url),
        model="toy",
        num_inference_steps=4,
        depth=depth,
        render_mode="rgb_array",
    )
    check_env(env.unwrapped)
    env.close()
    assert sessions(server) == []


def test_its_spaces_are_those_of_the_model(make: Make) -> None:
    env = make()
    assert env.action_space == Discrete(4)
    assert env.observation_space == Box(0, 255, (48, 64, 3), np.uint8)
    assert env.metadata["render_fps"] == 17.5 / 4
    deep = make(depth=True, frames_per_step=8)
    assert deep.observation_space == Dict(
        {"rgb": Box(0, 255, (48, 64, 3), np.uint8), "depth": Box(0, 64, (48, 64), np.float32)}
    )
    assert deep.metadata["render_fps"] == 17.5 / 8


def test_a_step_is_a_step_of_a_session(make: Make, server: httpx.Client) -> None:
    env = make(start="centre", cache="none", render_mode="rgb_array")
    first, begun = env.reset(seed=3)
    seen, reward, terminated, truncated, info = env.step(np.int64(1))
    assert (reward, terminated, truncated) == (0.0, False, False)
    assert env.session.num_frames == 8
    with Client(str(server.base_url)) as client:
        rollout = client.rollouts.create(
            model="toy",
            start="centre",
            cache="none",
            seed=begun["seed"],
            num_inference_steps=5,
            actions=["NOOP"] * 4 + ["MOVE_LEFT"] * 4,
        )
        frames = rollout.frames()["rgb"]
    assert np.array_equal(begun["frames"], frames[:4]) and np.array_equal(first, frames[3])
    assert np.array_equal(info["frames"], frames[4:]) and np.array_equal(seen, frames[7])
    assert np.array_equal(env.render(), seen)
    assert info["stats"] == {
        "steps_total": 5,
        "steps_full": 5,
        "steps_cached": 0,
        "skip_ratio": 0.0,
        "decisions": ("FFFFF",),
    }
    assert env.last_step.stats.action_to_frame_ms > 0


def test_depth_is_in_the_models_unit(make: Make) -> None:
    env = make(depth=True)
    env.reset(seed=0)
    seen, _, _, _, info = env.step(0)
    assert seen in env.observation_space
    assert info["frames"]["depth"].shape == (4, 48, 64)
    assert np.array_equal(seen["depth"], info["frames"]["depth"][-1])
    assert 1 < seen["depth"].max() <= 64


def test_the_same_seed_and_actions_give_the_same_frames(make: Make) -> None:
    played = []
    for seed in (7, 7, 8):
        env = make()
        seen = [env.reset(seed=seed)[0], env.step(2)[0], env.reset()[0], env.step(1)[0]]
        played.append(np.stack(seen))
    assert np.array_equal(played[0], played[1])
    assert not np.array_equal(played[0][0], played[0][2]), "episodes of one environment differ"
    assert not np.array_equal(played[0], played[2])


def test_what_the_caller_does_to_an_observation_stays_with_him(make: Make) -> None:
    before: list[Any] = []
    env = make(reward=lambda seen, action, frames: before.append(seen.max()) or 0.0)
    seen, _ = env.reset(seed=1)
    highest = seen.max()
    seen[:] = 0
    env.step(0)
    assert before == [highest] and highest > 0


def test_reward_and_end_are_the_callers(make: Make) -> None:
    asked: list[tuple[Any, Any, Any]] = []

    def reward(seen: Any, action: Any, frames: Any) -> tuple[float, bool]:
        asked.append((seen, action, frames))
        return float(action) / 2, action == 3

    env = make(reward=reward)
    first, _ = env.reset(seed=1)
    assert asked == [], "the first frames are nobody's doing"
    second, value, terminated, _, info = env.step(1)
    assert (value, terminated) == (0.5, False)
    assert np.array_equal(asked[0][0], first) and asked[0][1] == 1
    assert np.array_equal(asked[0][2], info["frames"])
    assert env.step(3)[1:4] == (1.5, True, False)
    assert np.array_equal(asked[1][0], second)
    assert make(reward=lambda *_: 2).reset()[0].shape == (48, 64, 3)


def test_options_of_reset(make: Make, server: httpx.Client) -> None:
    env = make()
    pictures = np.full((2, 48, 64, 3), 9, np.uint8)
    for options in ({"start": "centre"}, {"frames": pictures, "depth": np.ones((2, 48, 64))}):
        assert env.reset(options=options)[0] in env.observation_space
    for options, told in (({"begin": "centre"}, "begin"), ({"start": "nowhere"}, "nowhere")):
        with pytest.raises((InvalidInput, BadRequest), match=told):
            env.reset(options=options)
    with pytest.raises(ResetNeeded):
        env.step(0)
    assert sessions(server) == []


def test_the_action_of_the_first_frames(make: Make) -> None:
    idle, left = make(cache="none"), make(cache="none", reset_action=1)
    assert not np.array_equal(idle.reset(seed=5)[0], left.reset(seed=5)[0])
    with pytest.raises(InvalidInput, match="9"):
        make(reset_action=9)


@pytest.mark.parametrize("action", [4, -1, 1.5, "NOOP", [0, 1], None])
def test_actions_outside_the_space_are_refused(make: Make, action: Any) -> None:
    env = make()
    env.reset(seed=0)
    with pytest.raises(InvalidInput, match="action"):
        env.step(action)
    assert env.step(0)[0] in env.observation_space


def test_what_no_environment_can_be_made_of(make: Make, server: httpx.Client) -> None:
    for options, told in (
        ({"render_mode": "ascii"}, "render_mode"),
        ({"client": Client()}, "client"),
    ):
        with pytest.raises(InvalidInput, match=told):
            make(**options)
    with pytest.raises(TypeError, match="colour"):
        make(colour="red")
    with pytest.raises(NotFound, match="unheard"):
        make(model="unheard")
    env = make(cache="unheard")
    with pytest.raises(BadRequest, match="unheard") as refused:
        env.reset()
    assert refused.value.param == "cache"


def test_closing_closes_the_session_and_own_connections_only(server: httpx.Client) -> None:
    with Client(str(server.base_url)) as client:
        env = WorldEnv("toy", client=client, num_inference_steps=2)
        env.reset()
        env.reset()
        assert [session["id"] for session in sessions(server)] == [env.session.id]
        env.close()
        env.close()
        assert sessions(server) == []
        assert client.models.get("toy").status == "warm"
        with pytest.raises(ClosedEnvironmentError):
            env.reset()
        with pytest.raises(ResetNeeded):
            env.step(0)


def test_a_session_that_is_gone_truncates(make: Make, server: httpx.Client) -> None:
    env = make()
    seen, _ = env.reset(seed=1)
    server.delete(f"/v1/sessions/{env.session.id}").raise_for_status()
    last, reward, terminated, truncated, info = env.step(0)
    assert np.array_equal(last, seen)
    assert (reward, terminated, truncated, info) == (0.0, False, True, {"ended": "session_gone"})
    assert env.reset(seed=1)[0] in env.observation_space
    assert env.step(0)[3] is False


def test_a_session_that_is_full_truncates(make: Make) -> None:
    with serving(session_max_frames=8) as small:
        env = make(str(small.base_url))
        env.reset(seed=1)
        assert env.step(0)[3] is False
        assert env.step(0)[3:] == (True, {"ended": "session_full"})
        env.close()


def test_a_time_limit_is_gymnasiums(server: httpx.Client) -> None:
    env = gymnasium.make(
        "WorldCache/World-v0",
        base_url=str(server.base_url),
        model="toy",
        num_inference_steps=2,
        max_episode_steps=2,
    )
    env.reset(seed=0)
    assert [env.step(0)[3] for _ in range(2)] == [False, True]
    env.close()
