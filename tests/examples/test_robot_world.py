"""The example of a model of one's own: what it promises, alone and served."""

from __future__ import annotations

import ast
import base64
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import httpx
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from numpy.typing import NDArray
from PIL import Image

import worldcache
import worldcache.client.gym  # registers the environments
from examples.robot_network import ARENA, SIZE
from examples.robot_world import FPS, STARTS, RobotWorldModel
from tests.app.conftest import serving
from worldcache.api import RolloutResult
from worldcache.core import Observation
from worldcache.errors import InvalidInput, ModelLoadError, UnknownName
from worldcache.models.base import Row

ROOT = Path(__file__).parents[2]
NAME = "examples.robot_world.RobotWorldModel"
CURVE = [[0.5, 0.4]] * 16
PIXEL = ARENA / SIZE
"""Metres of a pixel's side."""


@pytest.fixture(scope="module")
def model() -> RobotWorldModel:
    return RobotWorldModel()


@pytest.fixture(scope="module")
def server() -> Iterator[httpx.Client]:
    with serving(models_by_name={"robot": worldcache.load_model(NAME)}) as running:
        yield running


def discs(frames: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Where the disc is in each frame ``[F, H, W, 3]``: metres right and up, by what is not floor."""
    different = np.abs(frames - np.median(frames, (1, 2), keepdims=True)).sum(-1)
    weights = np.where(different > different.max((1, 2), keepdims=True) / 2, 1.0, 0.0)
    along = (np.arange(SIZE) + 0.5) * PIXEL - ARENA / 2
    total = weights.sum((1, 2))
    right = (weights.sum(1) * along).sum(1) / total
    up = (weights.sum(2) * -along).sum(1) / total
    return np.stack([right, up], 1)


def driven(start: str, actions: list[list[float]]) -> NDArray[np.float64]:
    """Where the actions lead, if no wheel slips: metres right and up after each frame."""
    right, up, heading = STARTS[start]
    places = []
    for forward, turn in actions:
        heading += turn / FPS
        right, up = right + forward / FPS * np.cos(heading), up + forward / FPS * np.sin(heading)
        places.append((right, up))
    return np.array(places)


def psnr(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    return float(10 * np.log10(255**2 / np.mean((one.astype(float) - other) ** 2)))


def lines_of_code(path: Path) -> int:
    """Lines that are neither blank nor a comment nor part of a docstring."""
    source = path.read_text()
    texts: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            texts.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = enumerate(source.splitlines(), 1)
    return sum(
        bool(line.strip()) and not line.lstrip().startswith("#") and n not in texts for n, line in lines
    )


def test_it_is_short() -> None:
    assert lines_of_code(ROOT / "examples/robot_world.py") < 100


def test_it_drives_as_it_is_told(model: RobotWorldModel) -> None:
    result = worldcache.rollout(model, actions=CURVE, policy="none")
    assert result.frames["rgb"].shape == (16, SIZE, SIZE, 3) and result.frames["rgb"].dtype == np.uint8
    seen, expected = discs(result.frames["rgb"]), driven("centre", CURVE)
    assert np.abs(seen - expected).max() < 0.5 * PIXEL
    assert np.linalg.norm(seen[-1] - seen[0]) > 10 * PIXEL, "it has come a long way"


def test_it_drives_back_and_turns_to_the_right(model: RobotWorldModel) -> None:
    actions = [[-0.5, 0.0]] * 8 + [[0.5, -2.0]] * 8
    seen = discs(worldcache.rollout(model, actions=actions, policy="none").frames["rgb"])
    assert np.abs(seen - driven("centre", actions)).max() < 0.5 * PIXEL
    assert seen[7, 0] < -5 * PIXEL and seen[-1, 1] < -2 * PIXEL


def test_a_wall_stops_it(model: RobotWorldModel) -> None:
    seen = discs(worldcache.rollout(model, actions=[[1.0, 0.0]] * 24, policy="none").frames["rgb"])
    assert abs(seen[-1, 0] - (ARENA / 2 - 0.3)) < 0.5 * PIXEL
    assert np.abs(seen[-1] - seen[-4]).max() < 0.1 * PIXEL


def test_the_seed_decides_how_the_wheels_slip(model: RobotWorldModel) -> None:
    def frames(seed: int) -> NDArray[np.uint8]:
        return worldcache.rollout(model, actions=CURVE, policy="none", seed=seed).frames["rgb"]

    assert np.array_equal(frames(1), frames(1))
    assert not np.array_equal(frames(1), frames(2))


def test_a_rollout_goes_on_from_a_frame_of_another(model: RobotWorldModel) -> None:
    first = worldcache.rollout(model, actions=CURVE[:8], policy="none").frames["rgb"]
    rest = worldcache.rollout(
        model, actions=CURVE[8:], policy="none", observation=Observation(frames=first)
    ).frames["rgb"]
    assert np.abs(discs(rest) - driven("centre", CURVE)[8:]).max() < 0.5 * PIXEL


@pytest.mark.parametrize(
    ("policy", "parameters"),
    [("worldcache", {"warmup_steps": 3, "max_skip": 3}), ("forecast", {"full_steps": 8})],
)
def test_caching_is_close_but_not_exact(
    model: RobotWorldModel, policy: str, parameters: dict[str, Any]
) -> None:
    uncached = worldcache.rollout(model, actions=CURVE, policy="none")
    cached: RolloutResult = worldcache.rollout(model, actions=CURVE, policy=policy, **parameters)
    assert uncached.stats.steps_full == uncached.stats.steps_total == 2 * 20
    assert cached.stats.skip_ratio > 0.3
    assert not np.array_equal(cached.frames["rgb"], uncached.frames["rgb"])
    assert psnr(cached.frames["rgb"], uncached.frames["rgb"]) > 40
    assert np.abs(discs(cached.frames["rgb"]) - driven("centre", CURVE)).max() < PIXEL


@pytest.mark.parametrize("preset", ["none", "balanced", "fast"])
def test_its_presets_can_be_used(model: RobotWorldModel, preset: str) -> None:
    assert worldcache.rollout(model, actions=CURVE[:8], policy=preset).frames["rgb"].std() > 10


def test_tokens_are_a_view(model: RobotWorldModel) -> None:
    shape = model.latent_shape(8)
    view, output = model.tokens(shape), torch.randn(2, *shape)
    tokens = view.to_tokens(output)
    assert tokens.shape == (2 * view.layout.tokens_per_branch, view.width)
    assert torch.equal(view.from_tokens(tokens), output)
    first = tokens[0].view(3, 8, 8)
    assert torch.equal(first, output[0, :, 0, :8, :8]), "a token is a patch of one frame"


def test_rows_of_different_timesteps_share_a_batch(model: RobotWorldModel) -> None:
    generator = torch.Generator().manual_seed(0)
    poses = model.condition(model.begin(Observation(start="corner")), CURVE[:8], generator)
    latents = torch.randn(3, *model.latent_shape(8), generator=generator)
    rows = [
        Row(latents[0], 1000.0, poses),
        Row(latents[1], 50.0, poses),
        Row(latents[2], 500.0, poses, unconditional=True),
    ]
    together, alone = model.evaluate(rows), torch.cat([model.evaluate([row]) for row in rows])
    assert torch.allclose(together, alone, atol=1e-4)
    assert not torch.allclose(model.evaluate([Row(latents[2], 500.0, poses)])[0], alone[2], atol=1e-2)


def test_what_it_cannot_use_is_named(model: RobotWorldModel) -> None:
    with pytest.raises(UnknownName, match="centre, corner"):
        model.begin(Observation(start="moon"))
    empty = np.full((1, SIZE, SIZE, 3), 220, np.uint8)
    for frames, message in ((empty, "shows no robot"), (empty[:, :5], "64x64"), (None, "64x64")):
        with pytest.raises(InvalidInput, match=message) as caught:
            model.begin(Observation(frames=frames))
        assert caught.value.param == "observation.frames"
    with pytest.raises(ModelLoadError, match="weights"):
        worldcache.load_model(NAME, path="weights")


def body(**changes: Any) -> dict[str, Any]:
    return {"model": "robot", "observation": {"start": "centre"}, "seed": 7, "cache": "none", **changes}


def picture(uri: str) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def test_it_is_served_with_its_box(server: httpx.Client) -> None:
    models = {entry["id"]: entry for entry in server.get("/v1/models").json()["data"]}
    assert models["robot"]["action_space"] == {
        "type": "box",
        "shape": [2],
        "low": [-0.5, -2.0],
        "high": [1.0, 2.0],
        "names": ["forward", "turn"],
    }


def test_a_rollout_over_http_drives(server: httpx.Client) -> None:
    answer = server.post("/v1/rollouts", json=body(actions=CURVE))
    assert answer.status_code == 200, answer.text
    rollout = answer.json()
    assert rollout["status"] == "succeeded" and rollout["stats"]["steps_total"] == 40
    with worldcache.client.Client(str(server.base_url)) as client:
        made = client.rollouts.create(
            model="robot", start="centre", seed=7, cache="none", actions=CURVE
        ).frames()["rgb"]
    assert np.abs(discs(made) - driven("centre", CURVE)).max() < 0.5 * PIXEL


@pytest.mark.parametrize("wrong", [[3.0, 0.0], [0.5], [0.5, "left"], "forward", [0.5, 0.1, 0.0], None])
def test_a_bad_vector_is_named(server: httpx.Client, wrong: Any) -> None:
    answer = server.post("/v1/rollouts", json=body(actions=[*CURVE[:3], wrong, *CURVE[:3]]))
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == "actions.3"
    assert "forward" in answer.json()["error"]["message"]


def test_a_session_steps(server: httpx.Client) -> None:
    opened = server.post("/v1/sessions", json=body())
    assert opened.status_code == 201, opened.text
    path = opened.headers["location"]
    frames = []
    for step_id, action in enumerate(([0.5, 0.0], [0.0, 0.0])):
        answer = server.post(f"{path}/step", json={"actions": [action], "step_id": step_id})
        assert answer.status_code == 200, answer.text
        frames += [picture(frame["rgb"]) for frame in answer.json()["frames"]]
    seen = discs(np.stack(frames))
    expected = driven("centre", [[0.5, 0.0]] * 8 + [[0.0, 0.0]] * 8)
    assert np.abs(seen - expected).max() < 0.5 * PIXEL
    refused = server.post(f"{path}/step", json={"actions": [[0.5, 9.0]]})
    assert refused.status_code == 422 and refused.json()["error"]["param"] == "actions.0"
    assert server.delete(path).status_code < 300


def test_gymnasium_drives_it(server: httpx.Client) -> None:
    env = gymnasium.make(
        "WorldCache/World-v0", base_url=str(server.base_url), model="robot", start="centre", cache="none"
    )
    low, high = np.array([-0.5, -2.0], np.float32), np.array([1.0, 2.0], np.float32)
    assert env.action_space == Box(low, high, dtype=np.float32)
    first, _ = env.reset(seed=3)
    assert np.abs(discs(first[None])).max() < 0.5 * PIXEL, "a reset action of zeros stands still"
    seen, _, _, _, info = env.step(np.array([0.5, 0.0], np.float32))
    assert discs(seen[None])[0, 0] == pytest.approx(0.4, abs=0.5 * PIXEL)
    assert info["frames"].shape == (8, SIZE, SIZE, 3)
    env.step(env.action_space.sample())
    env.step(env.action_space.high)
    env.close()


def test_the_page_shows_what_works(server: httpx.Client, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs/own-model.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 2
    for code in blocks:
        exec(code.replace("http://127.0.0.1:8000", str(server.base_url)), {})
    assert "(32, 64, 64, 3)" in capsys.readouterr().out
    (sent,) = re.findall(r"-d '(.*?)'", text, re.DOTALL)
    assert server.post("/v1/rollouts", json=json.loads(sent)).status_code == 200
    (shown,) = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    assert RobotWorldModel().info.action_space.describe() == json.loads(shown)
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / "docs" / target).exists(), target
