"""The model that ships on CUDA: the same decisions, the same frames but for rounding."""

from __future__ import annotations

import io
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import worldcache
from app.catalogue import ModelSource
from tests.app.conftest import rollout_body, serving
from worldcache.api import RolloutResult
from worldcache.core import Observation
from worldcache.models.base import Row, WorldModel
from worldcache.models.doom import world
from worldcache.models.transfer import to_device, to_host

pytestmark = pytest.mark.gpu

ACTIONS = ["MOVE_LEFT", "MOVE_LEFT", "ATTACK", "NOOP", "MOVE_RIGHT", "MOVE_RIGHT", "NOOP", "ATTACK"]


def roll(model: WorldModel, policy: str, **parameters: Any) -> RolloutResult:
    return worldcache.rollout(
        model, actions=ACTIONS, policy=policy, seed=5, num_inference_steps=20, **parameters
    )


def decisions(result: RolloutResult) -> list[str]:
    return [chunk.decisions for chunk in result.stats.chunks]


def distance(one: RolloutResult, other: RolloutResult) -> float:
    """Mean absolute difference of the colours, of 255."""
    return float(np.abs(one.frames["rgb"].astype(int) - other.frames["rgb"].astype(int)).mean())


def same_frames(one: RolloutResult, other: RolloutResult) -> bool:
    return all(np.array_equal(one.frames[name], other.frames[name]) for name in one.frames)


@torch.inference_mode()
def rows(model: WorldModel, count: int) -> list[Row]:
    context = model.begin(Observation(start=model.info.starts[0]))
    return [
        Row(
            model.initial_latent(None, 4, torch.Generator().manual_seed(index)),
            950.0 - 90 * index,
            model.condition(context, (index % 4,) * 4, torch.Generator()),
            unconditional=index % 3 == 2,
        )
        for index in range(count)
    ]


@pytest.mark.parametrize(
    ("dtype", "policy", "parameters", "limit"),
    [
        ("float32", "none", {}, 0.5),
        ("float32", "worldcache", {}, 0.5),
        ("float32", "forecast", {"full_steps": 7}, 0.5),
        ("bfloat16", "none", {}, 2.0),
        ("bfloat16", "forecast", {"full_steps": 7}, 2.0),
    ],
)
def test_cuda_decides_and_draws_as_the_cpu_does(
    cuda: str, dtype: str, policy: str, parameters: dict[str, Any], limit: float
) -> None:
    here, there = (
        roll(worldcache.load_model("doom", device=device, dtype=dtype), policy, **parameters)
        for device in ("cpu", cuda)
    )
    assert decisions(here) == decisions(there)
    assert distance(here, there) < limit


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_cuda_graphs_compute_the_same(cuda: str, compile: bool) -> None:
    eager = worldcache.load_model("doom", device=cuda)
    graphs = worldcache.load_model("doom", device=cuda, cuda_graphs=True, compile=compile, max_batch=6)
    graphs.warm()
    with torch.inference_mode():
        for count in (1, 2, 3, 5, 6, 4, 7, 1):
            torch.testing.assert_close(
                graphs.evaluate(rows(graphs, count)),
                eager.evaluate(rows(eager, count)),
                rtol=1e-4,
                atol=1e-3,
            )
    assert decisions(roll(graphs, "worldcache")) == decisions(roll(eager, "worldcache"))


def test_answers_of_cuda_graphs_stay_as_they_were(cuda: str) -> None:
    model = worldcache.load_model("doom", device=cuda, cuda_graphs=True, max_batch=2)
    with torch.inference_mode():
        first = model.evaluate(rows(model, 2))
        kept = first.clone()
        model.evaluate(rows(model, 1))
        model.evaluate(list(reversed(rows(model, 2))))
    assert torch.equal(first, kept)


def test_pinned_copies_change_no_frame(cuda: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = worldcache.load_model("doom", device=cuda)
    pinned = roll(model, "worldcache")

    def plain_to_device(tensor: Tensor, device: torch.device) -> Tensor:
        return tensor.to(device)

    monkeypatch.setattr(world, "to_device", plain_to_device)
    monkeypatch.setattr(world, "to_host", Tensor.cpu)
    assert same_frames(pinned, roll(model, "worldcache"))


def test_copies_are_complete_and_independent_of_their_source(cuda: str) -> None:
    device = torch.device(cuda)
    for value in range(50):
        source = torch.full((512, 512), float(value))
        there = to_device(source, device)
        source.fill_(-1.0)
        assert torch.equal(to_host(there), torch.full((512, 512), float(value)))


def test_frames_are_decoded_on_a_stream_of_another_thread(cuda: str) -> None:
    model = worldcache.load_model("doom", device=cuda)
    latent = model.initial_latent(None, 4, torch.Generator().manual_seed(3))
    expected = model.decode(latent)
    made = torch.cuda.Event()
    made.record(torch.cuda.current_stream(latent.device))
    frames: list[Any] = []

    def decode() -> None:
        stream = torch.cuda.Stream(latent.device)
        stream.wait_event(made)
        with torch.inference_mode(), torch.cuda.stream(stream):
            frames.append(model.decode(latent))

    thread = threading.Thread(target=decode)
    thread.start()
    thread.join(60)
    assert np.array_equal(frames[0]["rgb"], expected["rgb"])


def test_two_devices_serve_in_one_process(cuda: str) -> None:
    def load(device: str) -> WorldModel:
        return worldcache.load_model("doom", device=device)

    settings = {"devices": f"cpu,{cuda}", "placement": f"here=cpu,there={cuda}"}
    models = {"here": ModelSource(load), "there": ModelSource(load)}
    with serving(models_by_name=models, **settings) as client, ThreadPoolExecutor(4) as pool:
        start = client.get("/v1/models/here").json()["starts"][0]

        def frames(name: str) -> np.ndarray:
            body = rollout_body(model=name, observation={"start": start}, actions=ACTIONS)
            rollout = client.post("/v1/rollouts", json=body).json()
            data = client.get(f"/v1/rollouts/{rollout['id']}/frames.npz").content
            return np.asarray(np.load(io.BytesIO(data))["rgb"]).astype(int)

        here, there, again, more = pool.map(frames, ["here", "there", "there", "here"])
        assert np.abs(here - there).mean() < 0.5
        assert np.abs(here - more).mean() < 0.5 and np.abs(there - again).mean() < 0.5
        assert client.post("/v1/models/there/unload").json()["status"] == "cold"
        assert frames("there").shape == there.shape


def test_unloading_gives_the_memory_back(cuda: str) -> None:
    def load(device: str) -> WorldModel:
        return worldcache.load_model("doom", device=device)

    before = torch.cuda.memory_allocated(cuda)
    settings = {"devices": cuda, "cuda_graphs": "doom"}
    with serving(models_by_name={"doom": ModelSource(load)}, **settings) as client:
        weights = client.get("/v1/models/doom").json()["memory_bytes"]
        assert torch.cuda.memory_allocated(cuda) >= before + weights
        client.post("/v1/models/doom/unload")
        assert torch.cuda.memory_allocated(cuda) < before + weights / 2
