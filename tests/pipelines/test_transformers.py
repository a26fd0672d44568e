"""Every class of transformer, in the denoise loop of its pipeline."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import worldcache
from tests.pipelines.by_hand import drive
from tests.pipelines.cases import CASES, STEPS, Case, run, wan
from worldcache.errors import InvalidInput
from worldcache.policies import make_policy

EVEN = [1 - step / STEPS for step in range(STEPS)]
"""Noise levels; the policies under test do not look at them."""


@pytest.fixture(params=CASES, ids=list(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture
def scheduler(case: Case) -> Any:
    return case.scheduler()


def count_calls(model: nn.Module) -> list[int]:
    """One entry per call of the part of the model that is called first."""
    calls: list[int] = []
    first: list[nn.Module] = []

    def note(module: nn.Module, _: object) -> None:
        if not first:
            first.append(module)
        if module is first[0]:
            calls.append(len(calls))

    for child in model.modules():
        if child is not model and not list(child.children()):
            child.register_forward_pre_hook(note)
    return calls


def test_none_changes_no_bit(case: Case, scheduler: Any) -> None:
    model = case.make()
    plain = run(case, model)
    worldcache.enable(model, "none", scheduler=scheduler)
    assert torch.equal(run(case, model, scheduler), plain)
    assert [branch.decisions for branch in worldcache.summary(model).branches] == ["F" * STEPS]


def test_a_cached_step_runs_nothing_of_the_model(case: Case, scheduler: Any) -> None:
    model = case.make()
    worldcache.enable(model, "interval", scheduler=scheduler, interval=3)
    run(case, model, scheduler)  # a model may compute some tensors once, at its first call
    calls = count_calls(model)
    run(case, model, scheduler)
    (branch,) = worldcache.summary(model).branches
    assert branch.decisions == "F..F..F..F"
    per_step, rest = divmod(len(calls), 4)
    assert per_step >= 1 and rest == 0


@pytest.mark.parametrize(
    ("policy", "parameters"),
    [
        ("worldcache", {"warmup_steps": 3, "max_skip": 2, "drift_threshold": 1e9}),
        ("taylor", {"interval": 3, "warmup_steps": 2}),
        ("easycache", {"warmup_steps": 2, "threshold": 0.3}),
    ],
    ids=["worldcache", "taylor", "easycache"],
)
def test_decisions_and_predictions_are_the_policys(
    case: Case, scheduler: Any, policy: str, parameters: dict[str, Any]
) -> None:
    if policy == "easycache" and case is CASES["PixArt"]:
        return  # refused: test_an_output_with_a_variance_has_no_latent_to_compare_with
    model = case.make()
    decisions, latents = drive(case, model, make_policy(policy, **parameters), EVEN)
    assert 3 <= decisions.count("F") < STEPS
    worldcache.enable(model, policy, scheduler=scheduler, **parameters)
    torch.testing.assert_close(run(case, model, scheduler), latents, rtol=1e-5, atol=1e-6)
    assert [branch.decisions for branch in worldcache.summary(model).branches] == [decisions]


def test_disabling_leaves_nothing_behind(case: Case, scheduler: Any) -> None:
    model = case.make()
    plain, attributes = run(case, model), set(vars(model))
    worldcache.enable(model, "interval", scheduler=scheduler, interval=2)
    assert not torch.equal(run(case, model, scheduler), plain)
    worldcache.disable(model)
    assert torch.equal(run(case, model, scheduler), plain)
    assert set(vars(model)) - attributes == {"_diffusers_hook"}
    assert not model._diffusers_hook.hooks


@pytest.mark.parametrize("return_dict", [True, False])
def test_a_cached_step_returns_the_models_own_type(return_dict: bool) -> None:
    case = CASES["SD3"]
    model, scheduler = case.make().to(torch.bfloat16), case.scheduler()
    worldcache.enable(model, "interval", scheduler=scheduler, interval=2)
    scheduler.set_timesteps(4)
    latent, text, pooled = (
        torch.ones(shape, dtype=torch.bfloat16) for shape in (case.shape, (1, 4, 8), (1, 8))
    )
    outputs = []
    for t in scheduler.timesteps[:2]:
        outputs.append(model(latent, text, pooled, t.expand(1), return_dict=return_dict))
        scheduler.step(latent, t, latent)
    full, cached = outputs
    assert worldcache.summary(model).branches[0].decisions == "F."
    assert type(cached) is type(full)
    assert cached[0].dtype == torch.bfloat16
    assert torch.equal(cached[0], full[0])
    assert cached[0].data_ptr() != full[0].data_ptr()


def test_an_output_with_a_variance_has_no_latent_to_compare_with() -> None:
    case = CASES["PixArt"]
    model, scheduler = case.make(), case.scheduler()
    worldcache.enable(model, "easycache", scheduler=scheduler)
    with pytest.raises(InvalidInput, match="choose another policy") as caught:
        run(case, model, scheduler)
    assert (caught.value.param, caught.value.code) == ("policy", "not_supported")


def test_conditions_behind_the_latent_are_not_compared() -> None:
    case = CASES["Wan"]
    torch.manual_seed(0)
    model, scheduler = wan(in_channels=6).eval(), case.scheduler()
    condition = torch.randn(1, 2, 3, 8, 8)
    with_condition = replace(
        case, call=lambda model, x, t: case.call(model, torch.cat([x, condition], dim=1), t)
    )
    parameters = {"warmup_steps": 2, "threshold": 0.3}
    decisions, latents = drive(with_condition, model, make_policy("easycache", **parameters), EVEN)
    worldcache.enable(model, "easycache", scheduler=scheduler, **parameters)
    torch.testing.assert_close(run(with_condition, model, scheduler), latents, rtol=1e-5, atol=1e-6)
    assert worldcache.summary(model).branches[0].decisions == decisions
    assert "." in decisions
