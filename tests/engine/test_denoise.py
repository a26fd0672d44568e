"""The denoise loop on a model whose every step can be worked out by hand."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from tests.toy import ToyWorldModel
from worldcache.engine.denoise import ChunkDenoiser
from worldcache.errors import InvalidInput, RolloutFailed
from worldcache.models.base import ChunkTask, Row, WorldModel
from worldcache.policies.registry import make_policy, policy_names
from worldcache.sampler import FlowMatchSampler, chunk_generator


def denoiser(
    policy: str, steps: int, guidance: float = 1.0, action: int = 0, **parameters: Any
) -> ChunkDenoiser:
    model = ToyWorldModel()
    task = ChunkTask(
        make_policy(policy, **parameters), (action,) * 4, 4, steps, guidance, chunk_generator(7, 0)
    )
    return ChunkDenoiser(model, task)


def run(chunk: ChunkDenoiser) -> tuple[float, str]:
    """Total change of the latent (the same in every pixel) and the decisions."""
    first = chunk.latent.clone()
    while not chunk.done:
        chunk.advance(chunk.take(chunk.view.to_tokens(chunk.model.evaluate(chunk.rows()))).tolist())
    change = chunk.latent - first
    assert change.std() < 1e-5
    return change.mean().item(), chunk.stats(0).decisions


def test_every_step_computed() -> None:
    # 4 steps: sigmas 1, .75, .5, .25; each moves by -.25 * sigma: -.25 * 2.5 = -.625
    change, decisions = run(denoiser("none", 4))
    assert decisions == "FFFF"
    assert change == pytest.approx(-0.625, abs=1e-5)


def test_reused_steps_repeat_the_last_output() -> None:
    # FULL at 0 and 2: outputs 1, 1, .5, .5: -.25 * 3 = -.75
    change, decisions = run(denoiser("interval", 4, interval=2))
    assert decisions == "F.F."
    assert change == pytest.approx(-0.75, abs=1e-5)


def test_a_line_is_predicted_exactly() -> None:
    # The output is linear in the step, so an order-1 prediction loses nothing against "none".
    change, decisions = run(denoiser("taylor", 10, order=1, interval=4, warmup_steps=3))
    assert decisions.count("F") < 7
    # sigmas 1, .9 ... .1: -.1 * 5.5 = -.55
    assert change == pytest.approx(-0.55, abs=1e-5)


def test_guidance_mixes_two_branches() -> None:
    # One step at sigma 1: with action 2 the branches return 3 and 1; 1 + 3 * (3 - 1) = 7.
    chunk = denoiser("none", 1, guidance=3.0, action=2)
    assert [row.unconditional for row in chunk.rows()] == [False, True]
    change, _ = run(chunk)
    assert change == pytest.approx(-7.0, abs=1e-4)


def test_guidance_is_applied_after_prediction() -> None:
    # Both branches are reused, and the guided output is the same at the cached step: two steps of -.5 * 7.
    change, decisions = run(denoiser("interval", 2, guidance=3.0, action=2, interval=2))
    assert decisions == "F."
    assert change == pytest.approx(-7.0, abs=1e-4)


def test_rows_carry_their_own_timestep() -> None:
    chunk = denoiser("interval", 4, interval=2)
    assert chunk.rows()[0].timestep == pytest.approx(1000.0)
    chunk.advance(chunk.take(chunk.view.to_tokens(chunk.model.evaluate(chunk.rows()))).tolist())
    assert chunk.rows()[0].timestep == pytest.approx(500.0)


def test_drift_is_recorded_for_each_step() -> None:
    chunk = denoiser("worldcache", 12)
    run(chunk)
    stats = chunk.stats(0)
    assert len(stats.drift) == 12
    assert all(drift == 0.0 for drift, kind in zip(stats.drift, stats.decisions, strict=True) if kind == "F")
    assert chunk.stats(0).token_classes is not None
    assert run_none_drift() == (None,) * 4


def run_none_drift() -> tuple[float | None, ...]:
    chunk = denoiser("none", 4)
    run(chunk)
    return chunk.stats(0).drift


def test_a_value_that_is_not_finite_fails() -> None:
    class Broken(ToyWorldModel):
        def evaluate(self, rows: Any) -> torch.Tensor:
            return super().evaluate(rows) * float("nan")

    chunk = ChunkDenoiser(
        Broken(), ChunkTask(make_policy("none"), (0,) * 4, 4, 4, 1.0, chunk_generator(7, 0))
    )
    with pytest.raises(RolloutFailed, match="step 0"):
        run(chunk)


def test_same_seed_same_noise_and_other_chunks_other_noise() -> None:
    model = ToyWorldModel()
    first = model.initial_latent((), 4, chunk_generator(7, 0))
    assert torch.equal(first, model.initial_latent((), 4, chunk_generator(7, 0)))
    assert not torch.equal(first, model.initial_latent((), 4, chunk_generator(7, 4)))
    assert not torch.equal(first, model.initial_latent((), 4, chunk_generator(8, 0)))


def test_rows_share_a_batch_by_shape() -> None:
    model = ToyWorldModel()
    one = Row(torch.zeros(4, 4, 8, 8), 1.0, None)
    other = Row(torch.zeros(4, 4, 8, 16), 1.0, None)
    assert model.batch_key(one) == model.batch_key(Row(torch.ones(4, 4, 8, 8), 500.0, None))
    assert model.batch_key(one) != model.batch_key(other)


def test_errors_are_measured_where_a_streak_ends() -> None:
    # interval 2 over 5 steps: outputs 1, .6 and .2 at steps 0, 2, 4. At 2 and 4 the newest output would
    # have been repeated: errors .4 and .4 against .6 and .2. Depth is the same in every pixel.
    chunk = denoiser("interval", 5, interval=2)
    run(chunk)
    stats = chunk.stats(0)
    assert stats.decisions == "F.F.F"
    assert stats.fallbacks == 0
    expected = ((0.4**2 + 0.4**2) / (0.6**2 + 0.2**2)) ** 0.5
    assert stats.modalities["rgb"].error == pytest.approx(expected, rel=1e-5)
    assert stats.modalities["depth"].error == pytest.approx(expected, rel=1e-5)
    assert (stats.modalities["rgb"].tokens, stats.modalities["depth"].tokens) == (12, 4)
    assert (stats.modalities["rgb"].skipped, stats.modalities["depth"].skipped) == (24, 8)


def test_both_branches_count_as_tokens_and_in_the_error() -> None:
    # Action 2: outputs 3, 2.5 and 1, .5 at steps 0 and 2 of 4.
    chunk = denoiser("interval", 4, guidance=3.0, action=2, interval=2)
    run(chunk)
    stats = chunk.stats(0).modalities["depth"]
    assert (stats.tokens, stats.skipped) == (8, 16)
    assert stats.error == pytest.approx((2 * 0.5**2 / (2.5**2 + 0.5**2)) ** 0.5)


def test_modalities_are_measured_apart() -> None:
    class Uneven(ToyWorldModel):
        def evaluate(self, rows: Any) -> torch.Tensor:
            outputs = super().evaluate(rows)
            outputs[:, 3] = 1.0
            return outputs

    task = ChunkTask(make_policy("interval", interval=2), (0,) * 4, 4, 3, 1.0, chunk_generator(7, 0))
    chunk = ChunkDenoiser(Uneven(), task)
    while not chunk.done:
        chunk.advance(chunk.take(chunk.view.to_tokens(chunk.model.evaluate(chunk.rows()))).tolist())
    modalities = chunk.stats(0).modalities
    assert modalities["depth"].error == 0.0
    # Outputs 1 and 1/3.
    assert modalities["rgb"].error == pytest.approx(2.0)


def test_without_a_streak_that_ended_there_is_no_error() -> None:
    for policy, parameters in (("none", {}), ("interval", {"interval": 9})):
        chunk = denoiser(policy, 4, **parameters)
        run(chunk)
        assert [stats.error for stats in chunk.stats(0).modalities.values()] == [None, None]


def test_measuring_does_not_change_a_rollout() -> None:
    class Unmeasured(ChunkDenoiser):
        def take(self, outputs: torch.Tensor) -> torch.Tensor:
            self._errors.add = lambda miss: None  # type: ignore[method-assign]
            return super().take(outputs)

    for policy in ("taylor", "worldcache", "easycache"):
        measured = denoiser(policy, 16)
        other = Unmeasured(measured.model, replace(measured.task, generator=chunk_generator(7, 0)))
        run(measured)
        while not other.done:
            other.advance(other.take(other.view.to_tokens(other.model.evaluate(other.rows()))).tolist())
        assert torch.equal(measured.latent, other.latent)


def test_easycache_reads_the_latent() -> None:
    # The latent falls with the output, so the first branch's changes decide; both are predicted.
    chunk = denoiser("easycache", 14, guidance=3.0, action=2, threshold=1e9)
    while not chunk.done:
        chunk.advance(chunk.take(chunk.view.to_tokens(chunk.model.evaluate(chunk.rows()))).tolist())
    assert chunk.stats(0).decisions == "F" * 10 + "...F"


def test_teacache_reads_the_modulated_input() -> None:
    asked: list[float] = []

    class Watched(ToyWorldModel):
        def modulated_input(self, row: Row) -> torch.Tensor:
            asked.append(row.timestep)
            assert not row.unconditional
            return super().modulated_input(row)

    policy = make_policy("teacache", threshold=1e9, coefficients=[0.0])
    chunk = ChunkDenoiser(Watched(), ChunkTask(policy, (0,) * 4, 4, 4, 3.0, chunk_generator(7, 0)))
    while not chunk.done:
        chunk.advance(chunk.take(chunk.view.to_tokens(chunk.model.evaluate(chunk.rows()))).tolist())
    assert chunk.stats(0).decisions == "F..F"
    assert asked == pytest.approx([1000, 750, 500, 250])


def test_a_model_without_a_modulated_input_says_so() -> None:
    model = ToyWorldModel()
    with pytest.raises(InvalidInput, match="choose a policy that needs none") as refused:
        WorldModel.modulated_input(model, Row(model.initial_latent((), 4, chunk_generator(7, 0)), 1.0, None))
    assert refused.value.code == "not_supported"


CALIBRATED = ("none", "teacache", "magcache")
"""Left out of what runs over all policies: nothing is cached, or a calibration is missing."""


class PickySampler(FlowMatchSampler):
    """Takes every step by itself and in the model's layout, as a scheduler that draws noise must."""

    def __init__(self, num_steps: int) -> None:
        super().__init__(FlowMatchEulerDiscreteScheduler(), num_steps)
        self.deltas = None

    def step(self, index: int, output: Tensor, latent: Tensor, generator: torch.Generator) -> Tensor:
        assert output.shape == latent.shape == (4, 4, 48, 64)
        return super().step(index, output, latent, generator)


@dataclass
class PickyWorldModel(ToyWorldModel):
    def sampler(self, num_steps: int) -> PickySampler:
        return PickySampler(num_steps)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("policy", [name for name in policy_names() if name not in CALIBRATED])
def test_a_streak_taken_at_once_equals_the_schedulers_own_steps(policy: str, guidance: float) -> None:
    latents, decisions = [], []
    for model in (ToyWorldModel(), PickyWorldModel()):
        task = ChunkTask(make_policy(policy), (2,) * 4, 4, 20, guidance, chunk_generator(7, 0))
        chunk = ChunkDenoiser(model, task)
        while not chunk.done:
            chunk.advance(chunk.take(chunk.view.to_tokens(model.evaluate(chunk.rows()))).tolist())
        decisions.append(chunk.stats(0).decisions)
        latents.append(chunk.latent)
    assert "." in decisions[0] and decisions[0] == decisions[1]
    torch.testing.assert_close(*latents, rtol=0, atol=1e-5)
