"""Replay a policy over recorded backbone outputs: what would it have computed, skipped, predicted?

Knows nothing of models: the outputs of every step are given, and a policy sees those it computes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from worldcache.errors import InvalidInput
from worldcache.policies import Schedule, StepInput, TokenLayout, get_policy_class, make_policy


@dataclass(frozen=True)
class Replay:
    """What a policy did over T steps of N tokens; all tensors on the host.

    Attributes:
        is_full: bool ``[T]``, whether the step was computed.
        output: float32 ``[T, N, d]``, recorded at a FULL step and predicted at a CACHED one.
        drift: float64 ``[T]``, accumulated drift after the step; NaN for policies that measure none.
        token_class: int8 ``[T, N]``, 0 stable, 1 linear, 2 chaotic, -1 while unknown.
        fallbacks: times that a value which is not finite made a step FULL.
    """

    is_full: Tensor
    output: Tensor
    drift: Tensor
    token_class: Tensor
    fallbacks: int = 0

    @property
    def skip_ratio(self) -> float:
        """Share of steps that were CACHED."""
        return 1.0 - float(self.is_full.double().mean())


def replay(
    outputs: Tensor,
    policy: str = "worldcache",
    *,
    latents: Tensor | None = None,
    sigmas: Sequence[float] | Tensor | None = None,
    modulated: Tensor | None = None,
    **parameters: object,
) -> Replay:
    """Drive ``policy`` through a chunk whose backbone outputs are known.

    A policy that needs a calibration takes it from the recording itself where none is given; it has
    then seen every output in advance, unlike in a rollout.

    Args:
        outputs: ``[T, N, d]`` floating point, what the backbone returns at each step.
        policy: a registered name.
        latents: ``[T, N, d]``, the latent at each step, for policies that look at it.
        sigmas: noise level of each step, T numbers; falling evenly from 1 towards 0 by default. The
            signal level is ``1 - sigma``.
        modulated: ``[T, ...]``, the timestep-modulated input at each step, for ``teacache``; the
            latents if left out.
        **parameters: the policy's parameters.

    Raises:
        InvalidInput: an argument does not fit; ``param`` names it.
    """
    outputs = _tokens(outputs, "outputs")
    inputs = _inputs(outputs, latents, modulated)
    num_steps, num_tokens, _ = outputs.shape
    levels = _levels(sigmas, num_steps)
    layout = TokenLayout(("tokens",), (num_tokens,))
    schedule = Schedule(levels, tuple(1.0 - sigma for sigma in levels), layout)

    driver = make_policy(policy, **_calibrated(policy, parameters, outputs, inputs))
    state = driver.reset(schedule)
    is_full = torch.zeros(num_steps, dtype=torch.bool)
    drift = torch.full((num_steps,), math.nan, dtype=torch.float64)
    token_class = torch.full((num_steps, num_tokens), -1, dtype=torch.int8)
    used = torch.empty_like(outputs, device="cpu")
    for step in range(num_steps):
        at_step = _at(inputs, step)
        if driver.should_compute(state, step, at_step):
            is_full[step] = True
            output = outputs[step]
            driver.plan(state, driver.learn(state, step, output, at_step).tolist())
        else:
            output = driver.predict(state, step, at_step)
        used[step] = output
        if state.drift is not None:
            drift[step] = state.drift
        if state.token_class is not None:
            token_class[step] = state.token_class
    return Replay(is_full, used, drift, token_class, state.fallbacks)


def _inputs(outputs: Tensor, latents: Tensor | None, modulated: Tensor | None) -> StepInput:
    """The inputs of all steps at once; asking for one that is missing raises InvalidInput."""
    if latents is not None:
        latents = _tokens(latents, "latents")
        if latents.shape != outputs.shape:
            raise InvalidInput(
                f"latents must have the shape of outputs {tuple(outputs.shape)}, not {tuple(latents.shape)}",
                param="latents",
            )
    if modulated is not None:
        modulated = _modulated(modulated, outputs.shape[0])

    def latent() -> Tensor:
        if latents is None:
            raise InvalidInput("this policy looks at the latents; give them", param="latents")
        return latents

    return StepInput(latent, latent if modulated is None else lambda: modulated)


def _at(inputs: StepInput, step: int) -> StepInput:
    return StepInput(lambda: inputs.latent()[step], lambda: inputs.modulated()[step])


def _calibrated(
    policy: str, parameters: dict[str, object], outputs: Tensor, inputs: StepInput
) -> dict[str, object]:
    """The parameters, completed from the recording where the policy needs a calibration."""
    policy_class = get_policy_class(policy)
    missing = [name for name in policy_class.calibrated if parameters.get(name) is None]
    if not missing:
        return parameters
    measured = policy_class.calibrate(outputs, inputs.modulated)
    return parameters | {name: measured[name] for name in missing}


def _tokens(value: Tensor, param: str) -> Tensor:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise InvalidInput(f"{param} must be a floating point torch tensor [T, N, d]", param=param)
    if value.ndim != 3 or 0 in value.shape:
        raise InvalidInput(
            f"{param} must be [steps, tokens, width] with none of them 0, not {list(value.shape)}",
            param=param,
        )
    return value.detach().float()


def _modulated(value: Tensor, num_steps: int) -> Tensor:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise InvalidInput("modulated must be a floating point torch tensor [T, ...]", param="modulated")
    if not value.numel() or len(value.shape) < 2 or len(value) != num_steps:
        raise InvalidInput(f"modulated must have {num_steps} entries, one per step", param="modulated")
    return value.detach().float()


def _levels(sigmas: Sequence[float] | Tensor | None, num_steps: int) -> tuple[float, ...]:
    if sigmas is None:
        return tuple(torch.linspace(1.0, 0.0, num_steps + 1)[:-1].tolist())
    try:
        levels = tuple(float(sigma) for sigma in sigmas)
    except (TypeError, ValueError):
        levels = ()
    if len(levels) != num_steps or not all(map(math.isfinite, levels)):
        raise InvalidInput(f"sigmas must be {num_steps} finite numbers, one per step", param="sigmas")
    return levels
