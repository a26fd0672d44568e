"""The published caching code on the published pipeline, step by step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.models.aether.golden import Recording, branches, golden_folder, largest_difference, read
from worldcache.engine.denoise import ChunkDenoiser
from worldcache.models.aether.latents import split_latent, unpack_raymap
from worldcache.models.base import ChunkTask
from worldcache.policies.base import Miss, StepInput
from worldcache.policies.math import curvature
from worldcache.policies.worldcache import WorldCacheConfig, WorldCachePolicy, WorldCacheState

TRACE = "worldcache_aether_trace"
PUBLISHED_NAMES = {
    "WORLDCACHE_PERCENTILE_STABLE": "stable_quantile",
    "WORLDCACHE_PERCENTILE_CHAOTIC": "chaotic_quantile",
    "WORLDCACHE_N_MAX": "max_skip",
    "WORLDCACHE_ERROR_THRESHOLD": "drift_threshold",
}


class RecordingPolicy(WorldCachePolicy):
    """``worldcache`` that keeps what it used, and what it made of it, by step."""

    def __init__(self, config: WorldCacheConfig) -> None:
        super().__init__(config)
        self.outputs: dict[int, Tensor] = {}
        self.curvatures: dict[int, Tensor] = {}
        self.classes: dict[int, Tensor] = {}

    def update(
        self, state: WorldCacheState, step: int, output: Tensor, inputs: StepInput, miss: Miss | None
    ) -> Tensor | None:
        evidence = super().update(state, step, output, inputs, miss)
        self.outputs[step] = output
        if state.token_class is not None:
            _, velocity, acceleration = state.differences
            norms = (torch.linalg.vector_norm(part, dim=-1) for part in (velocity, acceleration))
            self.curvatures[step] = curvature(*norms, self.config.eps)
            self.classes[step] = state.token_class
        return evidence

    def predict(self, state: WorldCacheState, step: int, inputs: StepInput) -> Tensor:
        self.outputs[step] = super().predict(state, step, inputs)
        return self.outputs[step]


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recording, ChunkDenoiser, RecordingPolicy]:
    """The chunk of ``aether_prediction``, denoised as the trace says."""
    recording = Recording.load("aether_prediction", tmp_path_factory.mktemp("aether"))
    metadata, tensors = read(TRACE)
    published = {PUBLISHED_NAMES[name]: value for name, value in json.loads(metadata["config"]).items()}
    policy = RecordingPolicy(
        WorldCacheConfig.model_validate({**published, "warmup_steps": metadata["warmup"]})
    )
    generator = torch.Generator().manual_seed(int(metadata["seed"]))
    task = ChunkTask(
        policy,
        recording.condition(generator),
        recording.frames - 1,
        int(metadata["steps"]),
        recording.scale,
        generator,
    )
    model = recording.model
    denoiser = ChunkDenoiser(model, task)
    while not denoiser.done:
        outputs = model.evaluate(denoiser.rows())
        denoiser.advance(denoiser.take(model.tokens(outputs.shape[1:]).to_tokens(outputs)).tolist())
    return Recording(model, metadata, tensors), denoiser, policy


Trace = tuple[Recording, ChunkDenoiser, RecordingPolicy]


def test_the_decisions_and_the_drift_are_the_published_ones(trace: Trace) -> None:
    recording, denoiser, _ = trace
    log = json.loads(recording.metadata["log"])
    stats = denoiser.stats(0)
    assert stats.decisions == "".join("F" if kind == "full" else "." for _, kind, _ in log)
    assert "." in stats.decisions
    assert list(stats.drift) == pytest.approx([drift for _, _, drift in log], rel=1e-4, abs=1e-5)


def test_every_output_is_the_published_one(trace: Trace) -> None:
    recording, denoiser, policy = trace
    for step, expected in enumerate(recording.series("out")):
        output = denoiser.view.from_tokens(policy.outputs[step])
        assert largest_difference(output, branches(expected)) <= 1e-5, step


def test_classes_and_curvature_are_the_published_ones(trace: Trace) -> None:
    recording, denoiser, policy = trace
    decisions = denoiser.stats(0).decisions
    full = [step for step in range(2, len(decisions)) if decisions[step] == "F"]
    assert sorted(policy.classes) == full
    for step in full:
        classes = branches(recording.tensors[f"mask.{step}"]).flatten()
        assert torch.equal(policy.classes[step].int(), classes.int()), step
        kappa = branches(recording.tensors[f"curv.{step}"]).flatten()
        torch.testing.assert_close(policy.curvatures[step], kappa, rtol=1e-3, atol=1e-5)


def test_the_chunk_ends_as_published(trace: Trace) -> None:
    recording, denoiser, _ = trace
    rgb, disparity, rays = split_latent(denoiser.latent)
    assert largest_difference(rgb, recording.tensors["final_rgb_latents"][0]) <= 1e-4
    assert largest_difference(disparity, recording.tensors["final_disp_latents"][0]) <= 1e-4
    expected = recording.tensors["final_raymap"]
    assert largest_difference(unpack_raymap(rays, len(expected)), expected) <= 1e-4


def test_the_trace_is_there() -> None:
    assert Path(golden_folder() / f"{TRACE}.safetensors").exists()
