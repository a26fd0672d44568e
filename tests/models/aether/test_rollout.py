"""Aether through the engine: batches, chunks, tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

import worldcache
from worldcache.core import UNCONDITIONED, ChunkFinished, Conditioning, Observation, RolloutEnded
from worldcache.engine.engine import Engine, Tick
from worldcache.engine.rollout import Rollout, RolloutRequest
from worldcache.errors import InvalidInput
from worldcache.models.aether.context import IDENTITY
from worldcache.models.aether.world import AetherWorldModel
from worldcache.policies.registry import make_policy

RNG = np.random.default_rng(1)
FRAME = Observation(frames=RNG.integers(0, 256, (1, 32, 48, 3), dtype=np.uint8))
VIDEO = Observation(frames=RNG.integers(0, 256, (17, 32, 48, 3), dtype=np.uint8))
GOAL = RNG.integers(0, 256, (32, 48, 3), dtype=np.uint8)
CACHED = {"warmup_steps": 3, "max_skip": 2, "drift_threshold": 1e9}


def forward(frames: int) -> tuple[Any, ...]:
    return tuple((*IDENTITY[:2], (0.0, 0.0, 1.0, 0.05 * (i + 1)), IDENTITY[3]) for i in range(frames))


def request(**changes: Any) -> RolloutRequest:
    chosen: dict[str, Any] = {
        "observation": FRAME,
        "actions": forward(16),
        "policy": make_policy("worldcache", **CACHED),
        "seed": 1,
        "num_inference_steps": 8,
        "guidance_scale": 3.0,
        "conditioning": UNCONDITIONED,
    }
    return RolloutRequest(**{**chosen, **changes})


def run(
    model: AetherWorldModel, requests: Sequence[RolloutRequest], ticks: list[Tick] | None = None
) -> list[tuple[list[ChunkFinished], RolloutEnded]]:
    """Chunks and end of each request, all of them submitted at once."""
    engine = Engine(observer=(lambda tick: None) if ticks is None else ticks.append)
    events: list[list[Any]] = [[] for _ in requests]
    for one, heard in zip(requests, events, strict=True):
        engine.submit(Rollout(model, one, heard.append))
    while not engine.idle:
        engine.tick()
    return [([event for event in heard if isinstance(event, ChunkFinished)], heard[-1]) for heard in events]


def test_two_requests_in_a_batch_are_each_alone(model: AetherWorldModel) -> None:
    requests = [
        request(),
        request(
            seed=2,
            num_inference_steps=6,
            actions=(None,) * 16,
            policy=make_policy("none"),
            conditioning=Conditioning(task="planning", goal=GOAL),
        ),
        request(
            observation=VIDEO,
            num_inference_steps=4,
            guidance_scale=1.0,
            conditioning=Conditioning(task="reconstruction"),
        ),
    ]
    ticks: list[Tick] = []
    together = run(model, requests, ticks)
    assert max(tick.rows for tick in ticks) == 5
    for one, (chunks, ended) in zip(requests, together, strict=True):
        ((alone, alone_ended),) = run(model, [one])
        assert ended.error is None and alone_ended.error is None
        assert chunks[0].stats.decisions == alone[0].stats.decisions
        for name in ("rgb", "depth", "pose"):
            ours, theirs = chunks[0].frames[name], alone[0].frames[name]
            assert ours.shape == theirs.shape == (17, *ours.shape[1:])
            np.testing.assert_allclose(ours.astype(float), theirs.astype(float), rtol=1e-3, atol=1.001)
    decisions = together[0][0][0].stats.decisions
    assert "." in decisions
    assert decisions[-1] == "F"


def test_the_seed_and_the_camera_matter(model: AetherWorldModel) -> None:
    requests = [request(), request(seed=2), request(actions=(None,) * 16), request()]
    first, other_seed, no_camera, again = (chunks[0].frames["rgb"] for chunks, _ in run(model, requests))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other_seed)
    assert not np.array_equal(first, no_camera)


def test_long_rollouts_go_on_from_the_last_frame(model: AetherWorldModel) -> None:
    long = request(actions=forward(50), num_inference_steps=2, policy=make_policy("none"))
    ((chunks, ended),) = run(model, [long])
    assert ended.error is None
    # 40 frames after the observed one, then 10 of a chunk of 16
    assert [len(chunk.frames["rgb"]) for chunk in chunks] == [41, 10]
    assert [chunk.first_frame for chunk in chunks] == [0, 41]
    # a session's two steps are the same
    first = request(actions=forward(40), num_inference_steps=2, policy=make_policy("none"))
    (((step,), _),) = run(model, [first])
    assert step.state is not None
    second = request(
        observation=None,
        state=step.state,
        actions=forward(50)[40:],
        num_inference_steps=2,
        policy=make_policy("none"),
    )
    (((rest,), _),) = run(model, [second])
    for name in ("rgb", "depth", "pose"):
        assert np.array_equal(step.frames[name], chunks[0].frames[name])
        assert np.array_equal(rest.frames[name], chunks[1].frames[name])


def test_a_guided_reconstruction_fails_alone(model: AetherWorldModel) -> None:
    wrong = request(observation=VIDEO, conditioning=Conditioning(task="reconstruction"))
    (_, failed), (_, fine) = run(model, [wrong, request(num_inference_steps=1)])
    assert isinstance(failed.error, InvalidInput)
    assert failed.error.param == "guidance_scale"
    assert fine.error is None


def test_the_library_call_rolls_out(model: AetherWorldModel) -> None:
    result = worldcache.rollout(
        model, observation=FRAME, actions=[None] * 16, num_inference_steps=4, policy="none", seed=5
    )
    assert result.frames["rgb"].shape == (17, 32, 48, 3)
    assert result.frames["depth"].shape == (17, 32, 48)
    assert result.frames["pose"].shape == (17, 4, 4)
    assert result.stats.steps_full == 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rolls_out(folder: Any, dtype: torch.dtype) -> None:
    half = AetherWorldModel.load(folder, device=torch.device("cpu"), dtype=dtype)
    ((chunks, ended),) = run(half, [request(num_inference_steps=2)])
    assert ended.error is None
    assert np.isfinite(chunks[0].frames["depth"]).all()
