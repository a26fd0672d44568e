"""How the environments are found, in interpreters of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import gymnasium
import httpx
import numpy as np
import pytest
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from app.catalogue import ModelSource
from tests.app.conftest import serving
from tests.toy import ToyWorldModel
from worldcache.client import Client, ServerBusy
from worldcache.client.gym import WorldEnv
from worldcache.client.gym.registration import IDS, register_worlds

ROOT = Path(__file__).parents[2]


def run(code: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter."""
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_an_id_that_names_the_module_needs_no_import(server: httpx.Client) -> None:
    options = f"base_url='{server.base_url}', model='toy', num_inference_steps=2"
    code = (
        "import sys, gymnasium\n"
        f"env = gymnasium.make('worldcache.client.gym:WorldCache/World-v0', {options})\n"
        "sys.stdout.write(str(env.reset(seed=0)[0].shape))\n"
        "env.close()\n"
        f"worlds = gymnasium.make_vec('WorldCache/doom-v0', num_envs=2, {options})\n"
        "sys.stdout.write(str(worlds.reset(seed=0)[0].shape))\n"
        "worlds.close()\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    done = run(code)
    assert (done.returncode, done.stdout) == (0, "(48, 64, 3)(2, 48, 64, 3)"), done.stderr


def test_without_gymnasium_the_extra_is_named() -> None:
    done = run("import sys; sys.modules['gymnasium'] = None; import worldcache.client.gym")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "ModuleNotFoundError: the environments need gymnasium: pip install 'worldcache[gym]'"
    )


def test_the_client_alone_does_not_load_gymnasium() -> None:
    assert run("import sys, worldcache.client; sys.exit('gymnasium' in sys.modules)").returncode == 0


@pytest.mark.filterwarnings("error")
def test_registering_again_changes_nothing() -> None:
    before = {name: gymnasium.spec(name) for name in IDS}
    register_worlds()
    assert all(gymnasium.spec(name) is before[name] for name in IDS)
    assert gymnasium.spec("WorldCache/doom-v0").kwargs == {"model": "doom"}


def test_an_environment_can_be_made_from_its_spec_again(server: httpx.Client) -> None:
    env = gymnasium.make(
        "WorldCache/World-v0", base_url=str(server.base_url), model="toy", num_inference_steps=2
    )
    assert env.spec is not None
    again = gymnasium.make(gymnasium.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    assert np.array_equal(env.reset(seed=1)[0], again.reset(seed=1)[0])
    env.close()
    again.close()


def test_gymnasiums_wrappers_fit_around_many(server: httpx.Client) -> None:
    worlds = RecordEpisodeStatistics(
        gymnasium.make_vec(
            "WorldCache/World-v0",
            num_envs=2,
            base_url=str(server.base_url),
            model="toy",
            num_inference_steps=2,
            max_episode_steps=2,
            reward=lambda seen, action, frames: float(action),
        )
    )
    worlds.reset(seed=0)
    worlds.step(np.array([1, 2]))
    infos = worlds.step(np.array([1, 3]))[4]
    assert infos["episode"]["r"].tolist() == [2.0, 5.0]
    assert infos["episode"]["l"].tolist() == [2, 2]
    worlds.close()


def test_a_model_that_was_never_loaded_is_loaded_first() -> None:
    def fail(device: str) -> ToyWorldModel:
        raise RuntimeError("no weights")

    sources = {"toy": ModelSource(lambda device: ToyWorldModel()), "broken": ModelSource(fail)}
    with serving(models_by_name=sources, preload="none") as running:
        assert "action_space" not in running.get("/v1/models/toy").json()
        with Client(str(running.base_url)) as client:
            env = WorldEnv("toy", client=client, num_inference_steps=2)
            assert env.reset(seed=0)[0].shape == (48, 64, 3)
            env.close()
            with pytest.raises(ServerBusy, match="'broken' cannot be loaded"):
                WorldEnv("broken", client=client)
