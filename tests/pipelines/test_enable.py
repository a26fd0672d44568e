"""The interface: what it takes, what it refuses, and loops without a scheduler."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import nn

import worldcache
from tests.pipelines.toy import ToyTransformer, latent, sample, toy_pipe
from worldcache.errors import InvalidInput, UnknownName
from worldcache.policies import make_policy


@pytest.mark.parametrize(
    ("arguments", "param", "code"),
    [
        ({"policy": "nine"}, "cache.policy", "unknown_policy"),
        ({"max_skips": 3}, "cache.max_skips", "unknown_parameter"),
        ({"max_skip": 0}, "cache.max_skip", "invalid_value"),
        ({"policy": make_policy("none"), "max_skip": 3}, "policy", "invalid_value"),
        ({"policy": "teacache"}, "policy", "not_supported"),
        ({"policy": "magcache"}, "cache.ratios", "policy_not_calibrated"),
        ({"scheduler": FlowMatchEulerDiscreteScheduler()}, "scheduler", "invalid_value"),
        ({"layout": "BXC"}, "layout", "invalid_value"),
        ({"layout": "BNN"}, "layout", "invalid_value"),
        ({"patch_size": 0}, "patch_size", "invalid_value"),
        ({"patch_size": (1, 2, 3, 4)}, "patch_size", "invalid_value"),
    ],
)
def test_what_cannot_be_used_is_named(arguments: dict, param: str, code: str) -> None:
    pipe = toy_pipe(model := ToyTransformer())
    with pytest.raises(InvalidInput) as caught:
        worldcache.enable(pipe, **arguments)
    assert (caught.value.param, caught.value.code) == (param, code)
    assert "forward" not in vars(model)


def test_an_unknown_policy_is_told_the_known_ones() -> None:
    with pytest.raises(UnknownName, match="interval, magcache, none"):
        worldcache.enable(toy_pipe(ToyTransformer()), "nine")


@pytest.mark.parametrize("action", [worldcache.enable, worldcache.disable, worldcache.summary])
@pytest.mark.parametrize(
    "target", [object(), None, SimpleNamespace(components={"unet": nn.Identity()}, scheduler=1)]
)
def test_an_object_without_a_transformer_is_refused(action, target: object) -> None:
    with pytest.raises(InvalidInput, match="has no transformer") as caught:
        action(target)
    assert caught.value.param == "pipe_or_transformer"


def test_a_pipeline_without_a_scheduler_is_refused() -> None:
    with pytest.raises(InvalidInput, match="has no scheduler") as caught:
        worldcache.enable(SimpleNamespace(components={"transformer": ToyTransformer()}))
    assert caught.value.param == "pipe_or_transformer"


def test_a_scheduler_must_have_timesteps() -> None:
    with pytest.raises(InvalidInput, match="timesteps") as caught:
        worldcache.enable(ToyTransformer(), scheduler=3)
    assert caught.value.param == "scheduler"


def test_a_cache_is_enabled_once_and_disabled_once() -> None:
    pipe = toy_pipe(model := ToyTransformer())
    worldcache.enable(pipe, "none")
    for target in (pipe, model):
        with pytest.raises(InvalidInput) as caught:
            worldcache.enable(target, "interval")
        assert (caught.value.param, caught.value.code) == ("pipe_or_transformer", "already_enabled")
    worldcache.disable(pipe)
    for action in (worldcache.disable, worldcache.summary):
        with pytest.raises(InvalidInput) as caught:
            action(pipe)
        assert (caught.value.param, caught.value.code) == ("pipe_or_transformer", "not_enabled")
    worldcache.enable(pipe, "interval")
    assert worldcache.summary(pipe).policy == "interval"


def test_all_transformers_of_a_pipeline_are_enabled() -> None:
    pipe = toy_pipe(ToyTransformer())
    pipe.components["transformer_2"] = ToyTransformer()
    worldcache.enable(pipe, "interval", interval=3)
    pipe.scheduler.set_timesteps(10)
    x = latent()
    for index, t in enumerate(pipe.scheduler.timesteps):
        model = pipe.components["transformer" if index < 5 else "transformer_2"]
        x = pipe.scheduler.step(model(x, t)[0], t, x, return_dict=False)[0]
    summary = worldcache.summary(pipe)
    assert [(branch.transformer, branch.decisions) for branch in summary.branches] == [
        ("transformer", "F..F."),
        ("transformer_2", "F..F."),
    ]
    worldcache.disable(pipe)
    assert all("forward" not in vars(pipe.components[name]) for name in ("transformer", "transformer_2"))


def test_a_summary_counts() -> None:
    pipe = toy_pipe(ToyTransformer())
    worldcache.enable(pipe, "interval", interval=4)
    empty = worldcache.summary(pipe)
    assert (empty.branches, empty.steps_total, empty.skip_ratio) == ((), 0, 0.0)
    sample(pipe, steps=8, scales=(1.0, 2.0))
    summary = worldcache.summary(pipe)
    assert summary.policy == "interval, interval 4"
    assert (summary.steps_total, summary.steps_full, summary.steps_cached) == (16, 4, 12)
    assert summary.skip_ratio == 0.75
    branch = summary.branches[1]
    assert (branch.transformer, branch.context, branch.call) == ("transformer", None, 1)
    assert (branch.steps_total, branch.steps_full, branch.steps_cached, branch.skip_ratio) == (8, 2, 6, 0.75)
    with pytest.raises(AttributeError):
        branch.decisions = ""  # type: ignore[misc]


def test_a_policy_object_serves() -> None:
    pipe = toy_pipe(ToyTransformer())
    worldcache.enable(pipe, make_policy("interval", interval=5))
    sample(pipe)
    assert worldcache.summary(pipe).branches[0].decisions == "F....F...."


def test_a_scheduler_put_in_later_is_followed() -> None:
    pipe = toy_pipe(ToyTransformer())
    worldcache.enable(pipe, "interval", interval=2)
    sample(pipe, steps=3)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler()
    sample(pipe, steps=4)
    assert worldcache.summary(pipe).branches[0].decisions == "F.F."


def test_a_transformer_alone_needs_its_steps() -> None:
    model = ToyTransformer()
    worldcache.enable(model, "interval")
    with pytest.raises(InvalidInput, match=r"worldcache\.steps") as caught:
        model(latent(), 0.5)
    assert caught.value.param == "scheduler"


def test_a_scheduler_that_is_gone_is_named() -> None:
    model = ToyTransformer()
    worldcache.enable(model, "interval", scheduler=FlowMatchEulerDiscreteScheduler())
    with pytest.raises(InvalidInput, match="gone") as caught:
        model(latent(), 0.5)
    assert caught.value.param == "scheduler"


def test_steps_of_a_loop_of_ones_own() -> None:
    model = ToyTransformer()
    worldcache.enable(model, "interval", interval=2)
    sigmas = [1.0, 0.75, 0.5, 0.25]
    for _ in range(2):
        seen = []
        for index in worldcache.steps(model, sigmas):
            seen.append(index)
            model(latent(), sigmas[index])
        assert seen == [0, 1, 2, 3]
        assert worldcache.summary(model).branches[0].decisions == "F.F."
    assert model.forwards == 4


def test_steps_that_were_left_are_over() -> None:
    model = ToyTransformer()
    worldcache.enable(model, "interval", interval=4)
    for index in worldcache.steps(model, [1.0, 0.75, 0.5, 0.25]):
        model(latent(), 0.0)
        if index == 1:
            break
    with pytest.raises(InvalidInput, match=r"worldcache\.steps"):
        model(latent(), 0.0)
    for _ in worldcache.steps(model, [1.0, 0.5]):
        model(latent(), 0.0)
    assert worldcache.summary(model).branches[0].decisions == "F."


@pytest.mark.parametrize(
    ("levels", "param"),
    [
        (([],), "sigmas"),
        (([1.0, float("nan")],), "sigmas"),
        (([1.0, 0.5], [0.0]), "alphas"),
        (([1.0], [float("inf")]), "alphas"),
    ],
)
def test_levels_that_do_not_fit_are_refused(levels: tuple, param: str) -> None:
    model = ToyTransformer()
    worldcache.enable(model, "none")
    with pytest.raises(InvalidInput) as caught:
        worldcache.steps(model, *levels)
    assert caught.value.param == param


def test_steps_need_a_cache() -> None:
    with pytest.raises(InvalidInput) as caught:
        worldcache.steps(ToyTransformer(), [1.0])
    assert caught.value.code == "not_enabled"


def test_policies_are_told_the_levels_given() -> None:
    model = ToyTransformer()
    sigmas = [1.0, 0.9, 0.75, 0.55, 0.4, 0.25, 0.1]
    worldcache.enable(model, "forecast", full_steps=3)
    outputs = []
    for index in worldcache.steps(model, sigmas):
        outputs.append(model(latent(), sigmas[index])[0][0])
    replay = worldcache.replay(torch.stack(outputs), "forecast", sigmas=sigmas, full_steps=3)
    expected = "".join("F" if full else "." for full in replay.is_full)
    assert worldcache.summary(model).branches[0].decisions == expected
    assert expected.count("F") == 3
