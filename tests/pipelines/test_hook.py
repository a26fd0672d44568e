"""What belongs to one call of a pipeline, and what to the next."""

from __future__ import annotations

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.models.cache_utils import CacheMixin
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import worldcache
from tests.pipelines.toy import ToyTransformer, latent, sample, toy_pipe
from worldcache.pipelines.summary import TransformerStep


class ContextToy(ToyTransformer, CacheMixin):
    """The toy with ``cache_context``."""


def decisions(target: object) -> dict[tuple[str | None, int], str]:
    return {(branch.context, branch.call): branch.decisions for branch in worldcache.summary(target).branches}


def test_two_calls_in_a_step_are_two_branches() -> None:
    pipe = toy_pipe(ToyTransformer())
    worldcache.enable(pipe, "interval", interval=3)
    sample(pipe, scales=(1.0, -3.0))
    assert decisions(pipe) == {(None, 0): "F..F..F..F", (None, 1): "F..F..F..F"}
    x, outputs = latent(), []
    pipe.scheduler.set_timesteps(4)
    for t in pipe.scheduler.timesteps[:2]:
        outputs.append([pipe.components["transformer"](x, t, scale)[0] for scale in (1.0, -3.0)])
        pipe.scheduler.step(x, t, x)
    for full, cached in zip(*outputs, strict=True):
        assert torch.equal(full, cached)
    assert not torch.equal(outputs[1][0], outputs[1][1])


def test_contexts_have_states_of_their_own() -> None:
    model = ContextToy()
    pipe = toy_pipe(model)
    worldcache.enable(pipe, "interval", interval=2)
    pipe.scheduler.set_timesteps(4)
    x, outputs = latent(), {"cond": [], "uncond": []}
    for index, t in enumerate(pipe.scheduler.timesteps):
        names = ("cond", "uncond") if index % 2 == 0 else ("uncond", "cond")  # the order says nothing
        for name in names:
            with model.cache_context(name):
                outputs[name].append(model(x, t, 1.0 if name == "cond" else -3.0)[0])
        pipe.scheduler.step(x, t, x)
    assert decisions(pipe) == {("cond", 0): "F.F.", ("uncond", 0): "F.F."}
    for made in outputs.values():
        assert torch.equal(made[0], made[1])
        assert torch.equal(made[2], made[3])
    assert not torch.equal(outputs["cond"][1], outputs["uncond"][1])


def test_a_branch_that_misses_a_step_begins_anew() -> None:
    model = ContextToy()
    pipe = toy_pipe(model)
    worldcache.enable(pipe, "interval", interval=4)
    pipe.scheduler.set_timesteps(8)
    for index, t in enumerate(pipe.scheduler.timesteps):
        with model.cache_context("cond"):
            model(latent(), t)
        if index not in (2, 3):
            with model.cache_context("uncond"):
                model(latent(), t)
        pipe.scheduler.step(latent(), t, latent())
    assert decisions(pipe) == {("cond", 0): "F...F...", ("uncond", 0): "F.F..."}


def test_a_batch_is_decided_on_as_a_whole() -> None:
    model = ToyTransformer()
    pipe = toy_pipe(model)
    worldcache.enable(pipe, warmup_steps=3, drift_threshold=1e9, max_skip=2)
    pipe.scheduler.set_timesteps(10)
    x = torch.cat([latent(), -latent()])
    used = []
    for t in pipe.scheduler.timesteps:
        used.append(model(x, t / 1000)[0])
        x = pipe.scheduler.step(used[-1], t, x, return_dict=False)[0]
    replay = worldcache.replay(
        torch.stack(used).reshape(10, 12, 4), warmup_steps=3, drift_threshold=1e9, max_skip=2
    )
    expected = "".join("F" if full else "." for full in replay.is_full)
    assert decisions(pipe) == {(None, 0): expected}
    torch.testing.assert_close(replay.output.reshape(10, 2, 6, 4), torch.stack(used))


@pytest.mark.parametrize("step", [1, 2, 4, 5])
def test_a_call_that_raised_leaves_nothing_to_the_next(step: int) -> None:
    expected = sample(toy := toy_pipe(ToyTransformer()))
    worldcache.enable(toy, "interval", interval=2)
    cached = sample(toy)
    assert not torch.equal(cached, expected)
    model = ToyTransformer()
    pipe = toy_pipe(model)
    worldcache.enable(pipe, "interval", interval=2)
    model.fail_at = step
    with pytest.raises(RuntimeError, match="the device is gone"):
        sample(pipe)
    assert torch.equal(sample(pipe), cached)
    assert decisions(pipe) == decisions(toy)


def test_a_call_that_was_left_in_the_first_step_leaves_nothing_to_the_next() -> None:
    pipe = toy_pipe(model := ToyTransformer())
    worldcache.enable(pipe, "interval", interval=2)
    expected = sample(pipe)
    pipe.scheduler.set_timesteps(10)
    model(latent() + 5, pipe.scheduler.timesteps[0])
    assert torch.equal(sample(pipe), expected)
    assert decisions(pipe) == {(None, 0): "F." * 5}


def test_a_step_that_failed_may_be_tried_again() -> None:
    model = ToyTransformer()
    pipe = toy_pipe(model)
    worldcache.enable(pipe, "interval", interval=2)
    pipe.scheduler.set_timesteps(4)
    model.fail_at = 2
    for index, t in enumerate(pipe.scheduler.timesteps):
        if index == 2:
            with pytest.raises(RuntimeError):
                model(latent(), t)
        model(latent(), t)
        pipe.scheduler.step(latent(), t, latent())
    assert decisions(pipe) == {(None, 0): "F.F."}


def test_a_loop_over_the_same_timesteps_is_a_new_call() -> None:
    pipe = toy_pipe(model := ToyTransformer())
    worldcache.enable(pipe, "interval", interval=3)
    pipe.scheduler.set_timesteps(4)
    for _ in range(2):
        for t in pipe.scheduler.timesteps:
            model(latent(), t)
        assert decisions(pipe) == {(None, 0): "F..F"}


def test_a_schedule_that_is_entered_late_warms_up_there() -> None:
    pipe = toy_pipe(model := ToyTransformer())
    worldcache.enable(pipe, warmup_steps=4, drift_threshold=1e9, max_skip=2)
    pipe.scheduler.set_timesteps(20)
    pipe.scheduler.set_begin_index(10)
    x = latent()
    for t in pipe.scheduler.timesteps[10:]:
        x = pipe.scheduler.step(model(x, t / 1000)[0], t, x, return_dict=False)[0]
    assert decisions(pipe) == {(None, 0): "FFFF..F..F"}


def test_another_shape_or_device_is_computed() -> None:
    pipe = toy_pipe(model := ToyTransformer())
    worldcache.enable(pipe, "interval", interval=4)
    pipe.scheduler.set_timesteps(8)
    for index, t in enumerate(pipe.scheduler.timesteps):
        x = latent() if index < 2 else latent()[:, :3]
        assert model(x, t)[0].shape == x.shape
    assert decisions(pipe) == {(None, 0): "F.F...F."}


def test_a_value_that_is_not_finite_is_not_reused() -> None:
    pipe = toy_pipe(model := ToyTransformer())
    worldcache.enable(pipe, "interval", interval=4)
    pipe.scheduler.set_timesteps(5)
    for index, t in enumerate(pipe.scheduler.timesteps):
        model(latent() * (float("nan") if index == 0 else 1.0), t)
    assert decisions(pipe) == {(None, 0): "FF..F"}


def test_an_observer_is_told_of_every_call() -> None:
    pipe = toy_pipe(ToyTransformer())
    told: list[TransformerStep] = []
    worldcache.enable(pipe, "interval", interval=3, observer=told.append)
    sample(pipe, steps=4, scales=(1.0, -3.0))
    places = [(step.index, step.full) for step in told]
    assert places == [(index, index % 3 == 0) for index in range(4) for _ in range(2)]
    assert {(step.tokens, step.drift, step.fell_back) for step in told} == {(6, None, False)}
    sample(pipe, steps=4)
    assert len(told) == 12
    assert len({id(step.course) for step in told[:8]}) == len({id(step.course) for step in told[8:]}) == 1
    assert told[0].course is not told[8].course


def test_an_observer_is_told_of_drift_and_of_values_that_are_not_finite() -> None:
    pipe = toy_pipe(model := ToyTransformer())
    told: list[TransformerStep] = []
    worldcache.enable(pipe, warmup_steps=3, drift_threshold=1e9, max_skip=2, observer=told.append)
    pipe.scheduler.set_timesteps(8)
    x = latent()
    for index, t in enumerate(pipe.scheduler.timesteps):
        output = model(x * (float("nan") if index == 0 else 1.0), t / 1000)[0]
        x = pipe.scheduler.step(output.nan_to_num(), t, x, return_dict=False)[0]
    assert [step.fell_back for step in told] == [True, True, True] + [False] * 5
    assert all((step.drift == 0) == step.full for step in told)


def test_what_the_pipeline_does_to_an_output_is_not_predicted_from() -> None:
    pipe = toy_pipe(model := ToyTransformer())
    worldcache.enable(pipe, "interval", interval=3)
    pipe.scheduler.set_timesteps(3)
    expected = ToyTransformer()(latent(), pipe.scheduler.timesteps[0])[0]
    for t in pipe.scheduler.timesteps:
        output = model(latent(), t)[0]
        assert torch.equal(output, expected)
        output.zero_()


def test_the_end_of_a_call_frees_the_state_and_keeps_the_summary() -> None:
    pipe = toy_pipe(model := ContextToy())
    worldcache.enable(pipe, "interval", interval=2)
    pipe.scheduler.set_timesteps(4)
    for t in pipe.scheduler.timesteps[:3]:
        model(latent(), t)
    model._reset_stateful_cache()
    assert decisions(pipe) == {(None, 0): "F.F"}
    model(latent(), pipe.scheduler.timesteps[3])  # would have been CACHED
    assert decisions(pipe) == {(None, 0): "F.FF"}


def test_other_hooks_of_the_transformer_go_on() -> None:
    class Doubled(ModelHook):
        def post_forward(self, module: nn.Module, output: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
            return (2 * output[0],)

    pipe = toy_pipe(model := ToyTransformer())
    plain = sample(pipe)
    registry = HookRegistry.check_if_exists_or_initialize(model)
    registry.register_hook(Doubled(), "doubled")
    doubled = sample(pipe)
    worldcache.enable(pipe, "none")
    assert torch.equal(sample(pipe), doubled)
    worldcache.disable(pipe)
    assert torch.equal(sample(pipe), doubled)
    registry.remove_hook("doubled")
    assert torch.equal(sample(pipe), plain)


class ReadCounter(TorchDispatchMode):
    """Counts what is read to the host: scalars, and copies of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.reads += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("scheduler", [FlowMatchEulerDiscreteScheduler, CogVideoXDDIMScheduler])
@pytest.mark.parametrize("policy", ["worldcache", "interval"])
def test_a_cached_step_reads_nothing(scheduler: type, policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = {"warmup_steps": 3, "drift_threshold": 1e9} if policy == "worldcache" else {"interval": 3}
    pipe = toy_pipe(model := ToyTransformer(), scheduler())
    worldcache.enable(pipe, policy, **parameters)
    lists = []
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: lists.append(1) or tolist(tensor))
    pipe.scheduler.set_timesteps(12)
    x, reads = latent(), []
    for t in pipe.scheduler.timesteps:
        before = len(lists)
        with ReadCounter() as counter:
            output = model(x, t.expand(1))[0]
        reads.append(counter.reads + len(lists) - before)
        x = pipe.scheduler.step(output, t, x, return_dict=False)[0]
    (letters,) = decisions(pipe).values()
    cached = [count for letter, count in zip(letters, reads, strict=True) if letter == "."]
    full = [count for letter, count in zip(letters, reads, strict=True) if letter == "F"]
    assert len(cached) > 3 and set(cached) == {0}
    assert set(full[1:]) == {1}  # the first one reads the schedule as well
