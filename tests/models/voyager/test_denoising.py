"""The transformer, the schedule and the policy against runs of the published code."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKLHunyuanVideo, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from tests.models.voyager.golden import read
from worldcache.engine.denoise import ChunkDenoiser
from worldcache.models.base import ChunkTask, Row
from worldcache.models.calibration import Calibration
from worldcache.models.voyager.codec import Codec
from worldcache.models.voyager.condition import join_channels
from worldcache.models.voyager.context import VoyagerCondition
from worldcache.models.voyager.facts import WorldFacts
from worldcache.models.voyager.keys import to_diffusers, transformer_config
from worldcache.models.voyager.load import Parts
from worldcache.models.voyager.text import FixedText, TextEmbedding
from worldcache.models.voyager.tokens import patchify
from worldcache.models.voyager.transformer import VoyagerTransformer3DModel
from worldcache.models.voyager.world import VoyagerWorldModel
from worldcache.policies.math import curvature
from worldcache.policies.registry import AnyPolicy, make_policy

CPU = torch.device("cpu")
TOLERANCE = 1e-5
PUBLISHED_NAMES = {
    "WORLDCACHE_PERCENTILE_STABLE": ("stable_quantile", float),
    "WORLDCACHE_PERCENTILE_CHAOTIC": ("chaotic_quantile", float),
    "WORLDCACHE_N_MAX": ("max_skip", int),
    "WORLDCACHE_ERROR_THRESHOLD": ("drift_threshold", float),
}


class GoldenRun:
    """A recorded run: its inputs, and a model with its weights that starts from its initial latent."""

    def __init__(self, name: str) -> None:
        self.tensors, self.metadata = read(f"voyager_{name}")
        weights, metadata = read(f"voyager_{name}_weights")
        axes = tuple(json.loads(metadata["dim"])["rope_dim_list"])
        config = transformer_config(weights, axes)
        transformer = VoyagerTransformer3DModel(**config)
        transformer.load_state_dict(to_diffusers(weights, config))
        size, frames = tuple(int(self.metadata[n]) for n in ("height", "width")), int(metadata["frames"])
        vae = AutoencoderKLHunyuanVideo(block_out_channels=(4,) * 4, norm_num_groups=1, layers_per_block=1)
        parts = Parts(
            WorldFacts(resolution=(size[0], size[1]), frames=frames),
            transformer,
            Codec(vae, CPU),
            FlowMatchEulerDiscreteScheduler(shift=float(metadata["shift"])),
            FixedText((), *(torch.empty(0),) * 3),
            None,
            Calibration(),
        )
        self.model = RecordingModel(parts, self.tensors["init_latents"][0])

    def condition(self) -> VoyagerCondition:
        given = {name: self.tensors[f"in_{name}"] for name in ("img_latents", "partial_cond", "partial_mask")}
        reference, drawn, mask = (value[0] for value in given.values())
        text = [
            TextEmbedding(*parts)
            for parts in zip(
                self.tensors["in_text"],
                self.tensors["in_text_mask"].bool(),
                self.tensors["in_text2"],
                strict=True,
            )
        ]
        return VoyagerCondition(reference, join_channels(reference, drawn, mask), text[1], text[0])

    def task(self, policy: AnyPolicy, steps: int) -> ChunkTask:
        frames = self.model.info.chunk_frames
        scale = float(self.metadata["cfg"])
        return ChunkTask(policy, self.condition(), frames, steps, scale, torch.Generator())


class RecordingModel(VoyagerWorldModel):
    def __init__(self, parts: Parts, initial: Tensor) -> None:
        super().__init__(parts, device=CPU, dtype=torch.float32)
        self.initial = initial
        self.outputs: list[Tensor] = []

    def initial_latent(self, condition: VoyagerCondition, frames: int, generator: torch.Generator) -> Tensor:
        assert self.latent_shape(frames) == tuple(self.initial.shape)
        return self.initial

    def evaluate(self, rows: Sequence[Row]) -> Tensor:
        self.outputs.append(super().evaluate(rows))
        return self.outputs[-1]


class RecordingDenoiser(ChunkDenoiser):
    """Keeps what each step used, its curvature and its classes, tokens of both branches."""

    def __post_init__(self) -> None:
        self.used: list[Tensor] = []
        self.states: list[tuple[Tensor, Tensor] | None] = []
        super().__post_init__()

    def take(self, tokens: Tensor) -> Tensor:
        evidence = super().take(tokens)
        self._record(tokens)
        return evidence

    def _count_step(self, decision: str) -> None:
        if decision == ".":
            self._record(self.policy.predict(self._state, self.step, self._inputs))
        super()._count_step(decision)

    def _record(self, tokens: Tensor) -> None:
        self.used.append(tokens)
        if self._state.token_class is None:
            self.states.append(None)
            return
        _, velocity, acceleration = self._state.differences
        kappa = curvature(velocity.norm(dim=-1), acceleration.norm(dim=-1), self.policy.config.eps)
        self.states.append((kappa, self._state.token_class))


def run(golden: GoldenRun, policy: AnyPolicy, steps: int) -> tuple[RecordingDenoiser, list[Tensor]]:
    denoiser = RecordingDenoiser(golden.model, golden.task(policy, steps))
    latents = []
    with torch.inference_mode():
        while not denoiser.done:
            output = golden.model.evaluate(denoiser.rows())
            evidence = denoiser.take(denoiser.view.to_tokens(output))
            denoiser.advance(evidence.tolist())
            latents.append(denoiser.latent)
    return denoiser, latents


def differ(ours: Tensor, published: Tensor) -> float:
    assert ours.shape == published.shape
    return (ours - published).abs().max().item()


@pytest.fixture(scope="module", params=["plain", "context"])
def golden(request: pytest.FixtureRequest) -> GoldenRun:
    return GoldenRun(request.param)


def test_every_step_is_as_published(golden: GoldenRun) -> None:
    steps = int(golden.metadata["steps"])
    golden.model.outputs.clear()
    denoiser, latents = run(golden, make_policy("none"), steps)
    for step in range(steps):
        unconditional_first = golden.model.outputs[step].flip(0)
        assert differ(unconditional_first, golden.tensors[f"model_out.{step}"]) <= TOLERANCE
        assert differ(latents[step][None], golden.tensors[f"latents.{step}"]) <= TOLERANCE
    assert denoiser.done


def test_the_schedule_is_as_published(golden: GoldenRun) -> None:
    sampler = golden.model.sampler(int(golden.metadata["steps"]))
    assert sampler.timesteps == pytest.approx(golden.tensors["timesteps"].tolist(), rel=1e-6)
    assert sampler.sigmas == pytest.approx(golden.tensors["sigmas"].tolist()[:-1], rel=1e-6)


def test_levels_are_rounded_as_published() -> None:
    # At step 8 of 24 float64 would round 2/3 up; the timestep differs in its last digit, and outputs by 1e-5.
    sampler = GoldenRun("plain").model.sampler(24)
    level = torch.linspace(1, 0, 25)[8]
    assert level != torch.tensor(2 / 3)
    assert sampler.sigmas[8] == (7 * level / (1 + 6 * level)).item()


def test_the_initial_latent_is_as_published(golden: GoldenRun) -> None:
    draws = torch.Generator().manual_seed(int(golden.metadata["seed"]))
    frames = golden.model.info.chunk_frames
    ours = VoyagerWorldModel.initial_latent(golden.model, golden.condition(), frames, draws)
    assert differ(ours[None], golden.tensors["init_latents"]) <= TOLERANCE


def test_the_input_is_as_published(golden: GoldenRun) -> None:
    condition = golden.condition()
    latents = torch.cat([golden.model.initial, condition.channels])
    assert torch.equal(latents.expand(2, -1, -1, -1, -1), golden.tensors["model_in.0"])


def test_positions_are_as_published(golden: GoldenRun) -> None:
    latents = golden.tensors["model_in.0"]
    rows = (latents.shape[-2] - 2) // 2
    for part, name in ((latents, "rope"), (latents[..., -rows:, :], "rope_cond")):
        cosine, sine = golden.model.transformer.rope(part)
        assert differ(cosine, golden.tensors[f"{name}_cos"]) <= TOLERANCE
        assert differ(sine, golden.tensors[f"{name}_sin"]) <= TOLERANCE


def test_tokens_are_patches_in_another_order_and_come_back(golden: GoldenRun) -> None:
    output = golden.tensors["model_out.0"]
    view = golden.model.tokens(output.shape[1:])
    tokens = view.to_tokens(output)
    assert torch.equal(view.from_tokens(tokens), output)
    flat = patchify(output, 2).flatten(1, 3)
    assert torch.equal(tokens.view_as(flat)[:, published_order(view.grids)], flat)
    assert view.layout.counts == tuple(t * h * w for t, h, w in view.grids.values())
    depth = tokens.view_as(flat)[:, view.layout.slices("depth")[0]]
    rows = (output.shape[-2] - 2) // 2
    assert torch.equal(depth, patchify(output[..., -rows:, :], 2).flatten(1, 3))


def published_order(grids: Mapping[str, tuple[int, int, int]]) -> Tensor:
    """Where each token of the published order is in ours."""
    places, before = [], 0
    for frames, rows, columns in grids.values():
        count = frames * rows * columns
        places.append(before + torch.arange(count).view(frames, rows, columns))
        before += count
    return torch.cat(places, dim=1).flatten()


def test_caching_is_as_published() -> None:
    trace, metadata = read("worldcache_voyager_trace")
    golden = GoldenRun(metadata["weights"].removeprefix("voyager_").removesuffix("_weights"))
    published = json.loads(metadata["config"])
    parameters = {
        PUBLISHED_NAMES[name][0]: PUBLISHED_NAMES[name][1](text) for name, text in published.items()
    }
    policy = make_policy("worldcache", warmup_steps=int(metadata["warmup"]), **parameters)
    steps = int(metadata["steps"])
    denoiser, _ = run(golden, policy, steps)

    log = json.loads(metadata["log"])
    stats = denoiser.stats(0)
    assert stats.decisions == "".join("F" if kind == "full" else "." for _, kind, _ in log)
    drift = [value for _, _, value in log]
    assert [value or 0.0 for value in stats.drift] == pytest.approx(drift, rel=1e-4, abs=1e-5)
    order = published_order(denoiser.view.grids)
    for step in range(steps):
        ours = denoiser.view.from_tokens(denoiser.used[step]).flip(0)
        assert differ(ours, trace[f"out.{step}"]) <= TOLERANCE, step
        state = denoiser.states[step]
        assert (state is None) == (f"curv.{step}" not in trace), step
        if state is not None:
            kappa, classes = (value.view(2, -1)[:, order].flip(0) for value in state)
            torch.testing.assert_close(kappa, trace[f"curv.{step}"], rtol=1e-3, atol=1e-5)
            assert torch.equal(classes.int(), trace[f"mask.{step}"].int()), step
    assert differ(denoiser.latent[None], trace["final_latents"]) <= TOLERANCE


def test_other_weights_would_be_noticed() -> None:
    golden = GoldenRun("plain")
    with torch.no_grad():
        golden.model.transformer.norm_out.linear.weight.copy_(
            torch.cat([*reversed(golden.model.transformer.norm_out.linear.weight.chunk(2))])
        )
    golden.model.outputs.clear()
    run(golden, make_policy("none"), 1)
    assert differ(golden.model.outputs[0].flip(0), golden.tensors["model_out.0"]) > TOLERANCE


def test_rows_do_not_depend_on_their_neighbours(golden: GoldenRun) -> None:
    condition = golden.condition()
    other = replace(condition, channels=condition.channels * 0.5, prompt=condition.negative)
    rows = [Row(golden.model.initial, 900.0, condition), Row(golden.model.initial * 2, 100.0, other)]
    with torch.inference_mode():
        together = golden.model.evaluate(rows)
        alone = torch.cat([golden.model.evaluate([row]) for row in rows])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
