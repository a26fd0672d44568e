"""Many environments against a running server around a small network."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium
import httpx
import numpy as np
import pytest
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from gymnasium.spaces import MultiDiscrete
from gymnasium.vector import AutoresetMode

from tests.app.conftest import serving
from tests.gym.conftest import Make, sessions
from tests.toy import ToyWorldModel
from worldcache.client import Client, ConnectionFailed, InvalidInput, StepsFailed
from worldcache.client.gym.vector_env import WorldVectorEnv
from worldcache.client.gym.world import World


@contextmanager
def counted(server: httpx.Client) -> Iterator[tuple[Client, list[str]]]:
    """A client, and the requests that it sends."""
    sent: list[str] = []
    note = lambda request: sent.append(f"{request.method} {request.url.path}")  # noqa: E731
    with httpx.Client(event_hooks={"request": [note]}) as http:
        yield Client(str(server.base_url), http=http), sent


def last_action_ends(seen: Any, action: Any, frames: Any) -> tuple[float, bool]:
    """1 a step, until ``ATTACK``."""
    return 1.0, action == 3


def test_a_step_of_all_is_one_request_and_shares_batches() -> None:
    model = ToyWorldModel()
    with serving(model) as server, counted(server) as (client, sent):
        worlds = gymnasium.make_vec(
            "WorldCache/World-v0",
            num_envs=8,
            vectorization_mode="vector_entry_point",
            model="toy",
            client=client,
            cache="none",
            num_inference_steps=5,
        )
        seen, infos = worlds.reset(seed=0)
        assert seen.shape == (8, 48, 64, 3) and seen in worlds.observation_space
        assert sent.count("POST /v1/sessions/step") == 1
        sent.clear()
        model.batches.clear()
        seen, rewards, terminated, truncated, infos = worlds.step(np.arange(8) % 4)
        assert sent == ["POST /v1/sessions/step"]
        assert sum(model.batches) == 8 * 5 and max(model.batches) > 1
        assert seen in worlds.observation_space
        assert infos["frames"].shape == (8, 4, 48, 64, 3) and infos["_frames"].all()
        assert rewards.tolist() == [0.0] * 8
        assert not terminated.any() and not truncated.any()
        assert worlds.action_space == MultiDiscrete([4] * 8)
        worlds.close()
        assert sessions(server) == []


@pytest.mark.parametrize("seed", [5, [5, 6, 7]])
def test_each_does_what_one_with_its_seed_does(make: Make, seed: Any) -> None:
    worlds = make(num_envs=3, render_mode="rgb_array", depth=True)
    first, infos = worlds.reset(seed=seed)
    second = worlds.step([0, 1, 2])[0]
    assert np.array_equal(np.stack(worlds.render()), second["rgb"])
    again = worlds.reset()[0]
    for index in range(3):
        env = make(depth=True)
        one, info = env.reset(seed=5 + index)
        for many, seen in ((first, one), (second, env.step(index)[0]), (again, env.reset()[0])):
            assert all(np.array_equal(many[name][index], seen[name]) for name in ("rgb", "depth"))
        assert infos["seed"][index] == info["seed"]


def test_the_next_step_begins_what_has_ended(make: Make, server: httpx.Client) -> None:
    with counted(server) as (client, sent):
        worlds = make(num_envs=2, base_url=None, client=client, reward=last_action_ends)
        assert worlds.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
        worlds.reset(seed=0)
        old = worlds.sessions
        _, rewards, terminated, _, _ = worlds.step([3, 0])
        assert (rewards.tolist(), terminated.tolist()) == ([1.0, 1.0], [True, False])
        sent.clear()
        seen, rewards, terminated, _, infos = worlds.step([3, 0])
        assert sent == [
            f"DELETE /v1/sessions/{old[0].id}",
            "POST /v1/sessions",
            "POST /v1/sessions/step",
        ]
        assert (rewards.tolist(), terminated.tolist()) == ([0.0, 1.0], [False, False])
        assert infos["_seed"].tolist() == [True, False]
        assert [session.num_frames for session in worlds.sessions] == [4, 12]
        one = make()
        one.reset(seed=0)
        assert np.array_equal(one.reset()[0], seen[0])
        worlds.close()


def test_the_same_step_begins_what_has_ended(make: Make) -> None:
    worlds = make(num_envs=2, autoreset_mode="SameStep", reward=last_action_ends)
    worlds.reset(seed=0)
    seen, rewards, terminated, _, infos = worlds.step([0, 3])
    assert (rewards.tolist(), terminated.tolist()) == ([1.0, 1.0], [False, True])
    one = make(reward=last_action_ends)
    one.reset(seed=1)
    final, _, _, _, info = one.step(3)
    assert infos["_final_obs"].tolist() == [False, True]
    assert np.array_equal(infos["final_obs"][1], final)
    assert np.array_equal(infos["final_info"]["frames"][1], info["frames"])
    first, info = one.reset()
    assert np.array_equal(seen[1], first)
    assert np.array_equal(infos["frames"][1], info["frames"])
    assert [session.num_frames for session in worlds.sessions] == [8, 4]


def test_same_step_is_finished_by_the_next_call_if_no_episode_could_follow(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    worlds = make(num_envs=2, autoreset_mode="SameStep", reward=last_action_ends)
    worlds.reset(seed=0)
    with monkeypatch.context() as broken:
        broken.setattr(World, "open", lambda *_: (_ for _ in ()).throw(ConnectionFailed("no")))
        with pytest.raises(ConnectionFailed):
            worlds.step([0, 3])
    _, rewards, terminated, _, infos = worlds.step([0, 3])
    assert (rewards.tolist(), terminated.tolist()) == ([1.0, 1.0], [False, True])
    assert infos["_final_obs"].tolist() == [False, True]
    assert [session.num_frames for session in worlds.sessions] == [8, 4]
    assert not worlds.step([0, 0])[2].any()


def test_a_reward_that_raises_takes_every_step_back(make: Make) -> None:
    def picky(seen: Any, action: Any, frames: Any) -> float:
        if action == 3:
            raise ArithmeticError("no reward for that")
        return 1.0

    worlds = make(num_envs=2, reward=picky)
    worlds.reset(seed=0)
    with pytest.raises(ArithmeticError):
        worlds.step([0, 3])
    assert [session.num_frames for session in worlds.sessions] == [4, 4]
    assert worlds.step([0, 0])[1].tolist() == [1.0, 1.0]


def test_sessions_of_forgotten_environments_are_closed(make: Make, server: httpx.Client) -> None:
    with Client(str(server.base_url)) as client:
        worlds = WorldVectorEnv("toy", 2, client=client, num_inference_steps=2)
        worlds.reset(seed=0)
        assert len(sessions(server)) == 2
        del worlds
        gc.collect()
        assert sessions(server) == []


def test_without_autoreset_the_caller_says_which_begin_anew(make: Make) -> None:
    worlds = make(num_envs=3, autoreset_mode=AutoresetMode.DISABLED, reward=last_action_ends)
    worlds.reset(seed=0)
    seen = worlds.step([0, 3, 0])[0]
    with pytest.raises(ResetNeeded, match="1"):
        worlds.step([0, 0, 0])
    options = {"reset_mask": np.array([False, True, False])}
    begun, infos = worlds.reset(seed=40, options=options)
    assert "reset_mask" in options
    assert np.array_equal(begun[[0, 2]], seen[[0, 2]])
    assert infos["_seed"].tolist() == [False, True, False]
    assert np.array_equal(begun[1], make().reset(seed=41)[0])
    assert [session.num_frames for session in worlds.sessions] == [8, 4, 8]
    assert not worlds.step([0, 0, 0])[2].any()


def test_episodes_have_an_end(make: Make) -> None:
    worlds = make(num_envs=2, max_episode_steps=2)
    worlds.reset(seed=0)
    ends = [worlds.step([0, 0])[3].tolist() for _ in range(5)]
    assert ends == [[False, False], [True, True], [False, False], [False, False], [True, True]]


def test_a_session_that_is_gone_truncates_its_episode_alone(make: Make, server: httpx.Client) -> None:
    worlds = make(num_envs=2)
    seen, _ = worlds.reset(seed=0)
    server.delete(f"/v1/sessions/{worlds.sessions[1].id}").raise_for_status()
    after, _, terminated, truncated, infos = worlds.step([1, 1])
    assert (terminated.tolist(), truncated.tolist()) == ([False, False], [False, True])
    assert np.array_equal(after[1], seen[1]) and not np.array_equal(after[0], seen[0])
    assert infos["ended"].tolist() == [None, "session_gone"]
    assert infos["_frames"].tolist() == [True, False]
    assert not worlds.step([1, 1])[3].any()


def test_a_step_that_not_all_could_take_is_taken_by_none(make: Make) -> None:
    faults: list[str] = []

    def fail_once(rows: Any) -> None:
        if faults and any(row.condition[0] == 2 for row in rows):
            raise RuntimeError(faults[0])

    with serving(ToyWorldModel(before_evaluate=fail_once)) as server:
        worlds = make(str(server.base_url), num_envs=3)
        worlds.reset(seed=0)
        faults.append("no")
        with pytest.raises(StepsFailed, match="1 of 3"):
            worlds.step([1, 2, 1])
        assert [session.num_frames for session in worlds.sessions] == [4, 4, 4]
        faults.clear()
        seen = worlds.step([1, 2, 1])[0]
        one = make(str(server.base_url))
        one.reset(seed=0)
        assert np.array_equal(one.step(1)[0], seen[0])
        worlds.close()
        one.close()


def test_episodes_that_cannot_begin_leave_no_sessions(make: Make) -> None:
    with serving(max_sessions_per_client=2) as server:
        with Client(str(server.base_url), retries=0) as client:
            worlds = make(base_url=None, client=client, num_envs=3)
            with pytest.raises(Exception, match="too_many_sessions"):
                worlds.reset(seed=0)
            assert sessions(server) == []
            with pytest.raises(ResetNeeded):
                worlds.step([0, 0, 0])


def test_options_for_each(make: Make) -> None:
    worlds = make(num_envs=2)
    assert worlds.reset(options={"start": ["centre", "centre"]})[0] in worlds.observation_space
    for seed, options, told in (
        ([1], None, "seed"),
        (None, {"start": ["centre"]}, "start"),
        (None, {"reset_mask": [True, False]}, "reset_mask"),
        (None, {"reset_mask": np.zeros(2, np.bool_)}, "reset_mask"),
        (None, {"begin": 1}, "begin"),
    ):
        with pytest.raises(InvalidInput, match=told):
            worlds.reset(seed=seed, options=options)


def test_what_no_environments_can_be_made_of(make: Make) -> None:
    for options, told in (
        ({"num_envs": 0}, "num_envs"),
        ({"max_episode_steps": 0}, "max_episode_steps"),
        ({"autoreset_mode": "Never"}, "NextStep"),
        ({"render_mode": "ascii"}, "render_mode"),
    ):
        with pytest.raises(InvalidInput, match=told):
            make(**{"num_envs": 2, **options})


def test_actions_are_one_for_each(make: Make) -> None:
    worlds = make(num_envs=2)
    worlds.reset(seed=0)
    for actions in ([0], [0, 4], [0.5, 1]):
        with pytest.raises(InvalidInput, match="action"):
            worlds.step(actions)
    assert [session.num_frames for session in worlds.sessions] == [4, 4]
    worlds.close()
    with pytest.raises(ClosedEnvironmentError):
        worlds.reset()
