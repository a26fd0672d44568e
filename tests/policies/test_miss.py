"""How far a prediction was off: the same whoever works it out, and learning with it changes nothing."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from worldcache.core import Prediction
from worldcache.policies.base import Schedule, StepInput, TokenLayout
from worldcache.policies.registry import make_policy

STEPS, LAYOUT = 16, TokenLayout(("rgb", "depth"), (3, 2))

POLICIES: dict[str, dict[str, Any]] = {
    "interval": {"interval": 3},
    "taylor": {"order": 2, "interval": 3},
    "hicache": {"order": 2, "interval": 3},
    "worldcache": {"warmup_steps": 3, "max_skip": 3, "drift_threshold": 1e9},
    "forecast": {"full_steps": 6},
    "easycache": {"threshold": 1.5},
}


def schedule(prediction: Prediction) -> Schedule:
    if prediction == "flow":
        sigmas = [1 - step / STEPS for step in range(STEPS)]
        return Schedule(tuple(sigmas), tuple(1 - sigma for sigma in sigmas), LAYOUT)
    angles = [1.5 * (1 - step / STEPS) + 0.01 for step in range(STEPS)]
    return Schedule(tuple(map(math.sin, angles)), tuple(map(math.cos, angles)), LAYOUT, prediction)


def outputs() -> Tensor:
    """A walk that turns slowly, with some noise on top."""
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 5, 4, generator=generator)
    noise = torch.randn(STEPS, 5, 4, generator=generator)
    angles = torch.linspace(0, 1, STEPS).view(-1, 1, 1)
    return first * angles.cos() + second * angles.sin() + 0.02 * noise


def walk(policy: str, prediction: Prediction, *, told: bool) -> tuple[str, Tensor]:
    """The decisions, and what was predicted; ``told``: the policy is told of its misses."""
    driver, walked = make_policy(policy, **POLICIES[policy]), outputs()
    state = driver.reset(schedule(prediction))
    decisions, predictions = "", []
    for step, output in enumerate(walked):
        inputs = StepInput(lambda seen=output: seen * 0.9 + 1, lambda seen=output: seen)  # type: ignore[misc]
        full = driver.should_compute(state, step, inputs)
        miss = None
        if decisions.endswith("."):
            predictions.append(driver.predict(state, step, inputs).clone())
        if full and decisions.endswith("."):
            miss = driver.miss(state, step, output, inputs)
            torch.testing.assert_close(miss.error, predictions[-1] - output)
            powers = [miss.error.square().sum(1), output.square().sum(1)]
            expected = torch.stack([torch.stack([part[:3].sum(), part[3:].sum()]) for part in powers], 1)
            torch.testing.assert_close(miss.powers, expected)
        if full:
            evidence = driver.learn(state, step, output, inputs, miss if told else None)
            driver.plan(state, evidence.tolist())
        decisions += "F" if full else "."
    return decisions, torch.stack(predictions)


@pytest.mark.parametrize("policy", POLICIES)
def test_being_told_changes_nothing(policy: str) -> None:
    (decisions, predictions), (others, same) = (walk(policy, "flow", told=told) for told in (True, False))
    assert "." in decisions and decisions == others
    torch.testing.assert_close(predictions, same)


@pytest.mark.parametrize("prediction", ["v", "epsilon"])
def test_forecast_looks_at_the_latent(prediction: Prediction) -> None:
    decisions, _ = walk("forecast", prediction, told=True)
    assert decisions.count("F") == 6
