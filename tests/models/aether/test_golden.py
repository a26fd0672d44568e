"""Aether against recordings of the published pipeline: same weights, same inputs, same seed."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from tests.models.aether.golden import Recording, branches, largest_difference, recordings
from worldcache.engine.denoise import ChunkDenoiser
from worldcache.models.aether.latents import split_latent, unpack_raymap
from worldcache.models.aether.pictures import colours, disparities
from worldcache.models.base import ChunkTask, Row
from worldcache.policies.registry import make_policy
from worldcache.sampler import CogVideoXDPMSampler

TIGHT, DECODED = 1e-5, 1e-4


def test_there_are_recordings() -> None:
    assert recordings()


def test_the_schedule_is_the_published_one(recording: Recording) -> None:
    sampler = recording.model.sampler(recording.steps)
    assert sampler.timesteps == tuple(map(float, recording.tensors["timesteps"].tolist()))
    guidance = recording.model.guidance(recording.scale, sampler)
    assert guidance == pytest.approx(recording.tensors["guidance"].tolist(), rel=1e-12)


def test_the_positions_are_the_published_ones(recording: Recording) -> None:
    length = recording.tensors["init_latents"].shape[1]
    cosine, sine = recording.model._tables(length, float(recording.metadata["fps"]))
    assert largest_difference(cosine, recording.tensors["rope_cos"]) <= TIGHT
    assert largest_difference(sine, recording.tensors["rope_sin"]) <= TIGHT


def test_the_first_input_is_the_published_one(recording: Recording) -> None:
    model, generator = recording.model, recording.generator()
    condition = recording.condition(generator)
    noise = model.initial_latent(condition, recording.frames - 1, generator)
    assert largest_difference(condition.latents, recording.tensors["condition_latents"][0]) <= TIGHT
    assert largest_difference(noise, recording.tensors["init_latents"][0]) == 0
    seen = [condition.latents] if recording.scale == 1 else [condition.latents, condition.unguided]
    inputs = torch.stack([torch.cat([noise, part], dim=1) for part in seen if part is not None])
    assert largest_difference(inputs, branches(recording.tensors["model_in.0"])) <= TIGHT


def test_every_step_is_the_published_one(recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    model, generator = recording.model, recording.generator()
    outputs: list[Tensor] = []
    noises: list[Tensor] = []
    evaluate, draw = model.evaluate, CogVideoXDPMSampler._draw

    def record_output(rows: Sequence[Row]) -> Tensor:
        outputs.append(evaluate(rows))
        return outputs[-1]

    def record_noise(self: CogVideoXDPMSampler, latent: Tensor, generator: torch.Generator) -> Tensor:
        noises.append(draw(self, latent, generator))
        return noises[-1]

    monkeypatch.setattr(model, "evaluate", record_output)
    monkeypatch.setattr(CogVideoXDPMSampler, "_draw", record_noise)
    condition = recording.condition(generator)
    task = ChunkTask(
        make_policy("none"), condition, recording.frames - 1, recording.steps, recording.scale, generator
    )
    denoiser = ChunkDenoiser(model, task)
    for output, latent, clean in zip(
        recording.series("model_out"), recording.series("latents"), recording.series("x0"), strict=True
    ):
        tokens = model.tokens(latent.shape[1:]).to_tokens(model.evaluate(denoiser.rows()))
        denoiser.advance(denoiser.take(tokens).tolist())
        assert largest_difference(outputs[-1], branches(output)) <= TIGHT
        assert largest_difference(denoiser.latent, latent[0]) <= TIGHT
        assert largest_difference(denoiser._sampler._clean, clean[0]) <= TIGHT  # type: ignore[attr-defined]
    assert denoiser.done
    assert [noise.tolist() for noise in noises] == [noise[0].tolist() for noise in recording.series("noise")]


def test_decoding_is_the_published_one(recording: Recording) -> None:
    model = recording.model
    rgb, disparity, rays = split_latent(recording.series("latents")[-1][0])
    assert largest_difference(colours(model.vae.decode(rgb)), recording.tensors["rgb"]) <= DECODED
    shown = disparities(model.vae.decode(disparity))
    assert largest_difference(shown, recording.tensors["disparity"]) <= DECODED
    assert (
        largest_difference(unpack_raymap(rays, recording.frames), recording.tensors["raymap_out"]) <= DECODED
    )


def test_frames_are_what_was_decoded(recording: Recording) -> None:
    frames = recording.model.decode(recording.series("latents")[-1][0])
    rgb, disparity = recording.tensors["rgb"].numpy(), recording.tensors["disparity"].clamp(1e-3, 1).numpy()
    assert abs(frames["rgb"] / 255.0 - rgb).max() <= 0.5 / 255 + DECODED
    assert abs(1 / frames["depth"] - disparity).max() <= DECODED
    assert frames["pose"].shape == (recording.frames, 4, 4)
