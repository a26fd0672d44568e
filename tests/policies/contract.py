"""What the contract tests share: recordings, and every registered policy ready to be driven."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from worldcache.policies import (
    Policy,
    PolicyState,
    Schedule,
    StepInput,
    TokenLayout,
    get_policy_class,
    make_policy,
    policy_names,
)
from worldcache.policies.replay import Replay, replay

STEPS = 24
LAYOUT = TokenLayout(("rgb", "depth"), (6, 3), branches=2)
PLANNING = [name for name in policy_names() if get_policy_class(name).plans_ahead]
AnyPolicy = Policy[Any, Any]

# What lets a policy skip on the recordings below: a calibration as of a model whose output changes half
# as much as its modulated input and grows by a hundredth a step, or a wider threshold.
PARAMETERS: Mapping[str, dict[str, Any]] = {
    "easycache": {"threshold": 0.5},
    "teacache": {"coefficients": (0.5, 0.0)},
    "magcache": {"ratios": (1.01,) * STEPS},
}

every_policy = pytest.mark.parametrize("name", policy_names())
planning_policy = pytest.mark.parametrize("name", PLANNING)


def make(name: str) -> AnyPolicy:
    return make_policy(name, **PARAMETERS.get(name, {}))


def play(name: str, outputs: Tensor, latents: Tensor) -> Replay:
    return replay(outputs, name, latents=latents, **PARAMETERS.get(name, {}))


def schedule(num_steps: int = STEPS) -> Schedule:
    sigmas = tuple(1 - step / num_steps for step in range(num_steps))
    return Schedule(sigmas, tuple(1 - sigma for sigma in sigmas), LAYOUT)


def recording(seed: int, num_steps: int = STEPS) -> Tensor:
    """Smooth outputs ``[T, N, d]``: each entry a sine with its own phase and pace."""
    generator = torch.Generator().manual_seed(seed)
    phase, pace = torch.rand(2, LAYOUT.num_tokens, 4, generator=generator)
    return torch.sin(phase * 6 + pace * 3 * torch.linspace(0, 1, num_steps)[:, None, None])


def advance(policy: AnyPolicy, state: PolicyState, step: int, outputs: Tensor, latents: Tensor) -> Tensor:
    """One denoise step, as the denoise loop drives it; what the step used."""
    inputs = StepInput(lambda: latents[step], lambda: latents[step])
    if not policy.should_compute(state, step, inputs):
        return policy.predict(state, step, inputs)
    policy.plan(state, policy.learn(state, step, outputs[step], inputs).tolist())
    return outputs[step]
