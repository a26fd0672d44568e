"""The solvers that controls use, on an equation whose solution is known."""

from __future__ import annotations

import math

import pytest
import torch

from worldcache.bench.solvers import DPM, EULER, SOLVERS, UNIPC, make_sampler
from worldcache.errors import UnknownName


def solve(solver: str, num_steps: int, shift: float = 1.0) -> float:
    """dx/dsigma = cos(2 sigma) + x / 2 from x(1) = 1 down to sigma = 0."""
    sampler = make_sampler(solver, num_steps, shift)
    x = torch.ones(1, 1)
    for step, sigma in enumerate(sampler.sigmas):
        x = sampler.step(step, math.cos(2 * sigma) + x / 2, x, torch.Generator())
    return float(x)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("solver", [UNIPC, DPM])
def test_a_multistep_solver_comes_nearer_than_euler(solver: str, shift: float) -> None:
    truth = solve(EULER, 4000)
    for num_steps in (10, 24):
        assert abs(solve(solver, num_steps, shift) - truth) < 0.7 * abs(
            solve(EULER, num_steps, shift) - truth
        )


@pytest.mark.parametrize("solver", SOLVERS)
def test_all_walk_the_same_noise_levels(solver: str) -> None:
    sampler = make_sampler(solver, 4, shift=3.0)
    # 3 s / (1 + 2 s) at s = 1, 3/4, 1/2, 1/4
    assert sampler.sigmas == pytest.approx((1.0, 0.9, 0.75, 0.5), abs=1e-6)
    assert sampler.timesteps == pytest.approx((1000.0, 900.0, 750.0, 500.0), abs=1e-3)


def test_an_unknown_solver_names_the_known() -> None:
    with pytest.raises(UnknownName, match="unipc"):
        make_sampler("heun", 4, 1.0)
