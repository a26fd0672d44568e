"""The denoise loop on a model whose every step can be worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.toy import ToyWorldModel
from worldcache.engine.denoise import ChunkDenoiser
from worldcache.errors import RolloutFailed
from worldcache.models.base import Row
from worldcache.policies.registry import make_policy
from worldcache.sampler import chunk_generator


def denoiser(
    policy: str, steps: int, guidance: float = 1.0, action: int = 0, **parameters: Any
) -> ChunkDenoiser:
    model = ToyWorldModel()
    return ChunkDenoiser(
        model, make_policy(policy, **parameters), (action,) * 4, steps, guidance, chunk_generator(7, 0)
    )


def run(chunk: ChunkDenoiser) -> tuple[float, str]:
    """Total change of the latent (the same in every pixel) and the decisions."""
    first = chunk.latent.clone()
    while not chunk.done:
        chunk.advance(chunk.take(chunk.model.evaluate(chunk.rows())).tolist())
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
    chunk.advance(chunk.take(chunk.model.evaluate(chunk.rows())).tolist())
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

    chunk = ChunkDenoiser(Broken(), make_policy("none"), (0,) * 4, 4, 1.0, chunk_generator(7, 0))
    with pytest.raises(RolloutFailed, match="step 0"):
        run(chunk)


def test_same_seed_same_noise_and_other_chunks_other_noise() -> None:
    model = ToyWorldModel()
    first = model.initial_latent(chunk_generator(7, 0))
    assert torch.equal(first, model.initial_latent(chunk_generator(7, 0)))
    assert not torch.equal(first, model.initial_latent(chunk_generator(7, 4)))
    assert not torch.equal(first, model.initial_latent(chunk_generator(8, 0)))


def test_rows_share_a_batch_by_shape() -> None:
    model = ToyWorldModel()
    one = Row(torch.zeros(4, 4, 8, 8), 1.0, None)
    other = Row(torch.zeros(4, 4, 8, 16), 1.0, None)
    assert model.batch_key(one) == model.batch_key(Row(torch.ones(4, 4, 8, 8), 500.0, None))
    assert model.batch_key(one) != model.batch_key(other)
