"""Tokens and policies worked out in plain loops, to compare with."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from tests.pipelines.cases import STEPS, Case, denoise, sample_of
from worldcache.policies import Schedule, StepInput, TokenLayout
from worldcache.policies.registry import AnyPolicy

FULL_AXES = "BTHWC"


def places(shape: torch.Size, axes: str, patch: tuple[int, int, int]) -> Iterator[tuple[Any, ...]]:
    """For each token, in order, where its values are in the tensor."""
    if "N" in axes:
        assert axes == "BNC"
        yield from product(range(shape[0]), range(shape[1]), [slice(None)])
        return
    sizes = dict(zip(axes, shape, strict=True))
    steps = dict(zip("THW", patch, strict=True))
    starts = [range(0, sizes.get(axis, 1), steps.get(axis, 1)) for axis in "BTHW"]
    for start in product(*starts):
        where = {
            axis: slice(first, first + steps.get(axis, 1)) for axis, first in zip("BTHW", start, strict=True)
        }
        yield tuple(where.get(axis, slice(None)) for axis in axes)


def to_tokens(value: Tensor, axes: str, patch: tuple[int, int, int]) -> Tensor:
    return torch.stack([value[place].reshape(-1) for place in places(value.shape, axes, patch)])


def from_tokens(tokens: Tensor, shape: torch.Size, axes: str, patch: tuple[int, int, int]) -> Tensor:
    value = torch.full(shape, torch.nan)
    for place, row in zip(places(shape, axes, patch), tokens, strict=True):
        value[place] = row.reshape(value[place].shape)
    return value


def drive(case: Case, model: nn.Module, policy: AnyPolicy, sigmas: list[float]) -> tuple[str, Tensor]:
    """Denoise with ``policy`` on an untouched model: the decisions, and the latents of all steps."""
    decisions: list[str] = []
    axes = "BCTHW" if case.axes == "CTHW" else case.axes
    states: list[Any] = []
    shapes: list[torch.Size] = []

    def answer(step: int, latent: Tensor, timestep: Tensor) -> Any:
        inputs = StepInput(lambda: to_tokens(latent, axes, case.patch))
        if not states:
            shapes.append(sample_of(case.call(model, latent, timestep)).shape)
            count = len(list(places(shapes[0], axes, case.patch)))
            schedule = Schedule(tuple(sigmas), tuple(1 - s for s in sigmas), TokenLayout(("x",), (count,)))
            states.append(policy.reset(schedule))
        if policy.should_compute(states[0], step, inputs):
            decisions.append("F")
            output = case.call(model, latent, timestep)
            tokens = to_tokens(sample_of(output), axes, case.patch)
            policy.plan(states[0], policy.learn(states[0], step, tokens, inputs).tolist())
            return output
        decisions.append(".")
        predicted = policy.predict(states[0], step, inputs)
        return (from_tokens(predicted, shapes[0], axes, case.patch),)

    assert len(sigmas) == STEPS
    latents = torch.stack(list(denoise(case, model, answer, case.scheduler())))
    return "".join(decisions), latents
