"""Levels and steps, by what a scheduler and a pipeline say of them."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from diffusers.hooks.hooks import CacheContext

from tests.pipelines.toy import ToyPipe
from worldcache.errors import InvalidInput
from worldcache.pipelines.levels import noise_levels
from worldcache.pipelines.position import SchedulerSteps


def begun(scheduler: Any, steps: int = 4) -> Any:
    scheduler.set_timesteps(steps)
    return scheduler


def test_flow_matching() -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    levels = noise_levels(scheduler)
    assert levels.sigmas == (1.0, 0.75, 0.5, 0.25)
    assert levels.alphas == (0.0, 0.25, 0.5, 0.75)
    assert levels.since(2).sigmas == (0.5, 0.25)


def test_flow_matching_in_other_words() -> None:
    scheduler = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    levels = noise_levels(begun(scheduler))
    assert levels.sigmas == tuple(scheduler.sigmas.double()[:4].tolist())
    assert all(alpha == 1 - sigma for alpha, sigma in zip(levels.alphas, levels.sigmas, strict=True))


def test_mochis_sigmas_rise_and_its_noise_falls() -> None:
    scheduler = begun(diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True))
    levels = noise_levels(scheduler)
    assert levels.sigmas[0] == 1 and levels.sigmas == tuple(sorted(levels.sigmas, reverse=True))


def test_noise_in_units_of_the_signal() -> None:
    scheduler = begun(diffusers.EulerDiscreteScheduler())
    noise = float(scheduler.sigmas[1])
    levels = noise_levels(scheduler)
    assert levels.sigmas[1] == pytest.approx(noise / math.sqrt(1 + noise**2))
    assert levels.alphas[1] == pytest.approx(1 / math.sqrt(1 + noise**2))


def test_levels_by_timestep() -> None:
    scheduler = begun(diffusers.DDIMScheduler())
    signal = float(scheduler.alphas_cumprod[scheduler.timesteps[2]])
    levels = noise_levels(scheduler)
    assert len(levels) == 4
    assert levels.alphas[2] == pytest.approx(math.sqrt(signal))
    assert levels.sigmas[2] == pytest.approx(math.sqrt(1 - signal))


def test_a_scheduler_without_levels_is_refused() -> None:
    scheduler = SimpleNamespace(timesteps=torch.arange(4), config={})
    with pytest.raises(InvalidInput, match=r"worldcache\.steps") as caught:
        noise_levels(scheduler)
    assert (caught.value.param, caught.value.code) == ("scheduler", "not_supported")


def find(owner: Any, timestep: Any, context: CacheContext | None = None) -> int:
    return SchedulerSteps(owner).locate(context, timestep).index


def test_a_view_of_the_timesteps_says_its_index() -> None:
    scheduler = begun(diffusers.FlowMatchEulerDiscreteScheduler())
    for index, t in enumerate(scheduler.timesteps):
        assert find(scheduler, t) == find(scheduler, t.expand(2)) == find(scheduler, t.expand(1, 3)) == index


def test_the_pipelines_current_timestep_is_a_view_too() -> None:
    pipe = ToyPipe({}, begun(diffusers.DDIMScheduler()))
    pipe._current_timestep = pipe.scheduler.timesteps[2]
    assert find(pipe, torch.rand(1, 3)) == 2


def test_a_view_of_other_timesteps_says_nothing() -> None:
    scheduler = begun(diffusers.FlowMatchEulerDiscreteScheduler())
    old = scheduler.timesteps
    pipe = ToyPipe({}, begun(scheduler))
    pipe._current_timestep = old[3]
    assert find(pipe, old[2]) == 0
    assert find(pipe, scheduler.timesteps) == 0  # all of them are no step


def test_the_context_goes_before_the_schedulers_counter() -> None:
    scheduler = begun(diffusers.FlowMatchEulerDiscreteScheduler())
    assert find(scheduler, torch.tensor(0.5), CacheContext("cond", step_index=3)) == 3
    assert find(scheduler, torch.tensor(0.5), CacheContext("cond")) == 0


def test_the_schedulers_own_index() -> None:
    scheduler = begun(diffusers.FlowMatchEulerDiscreteScheduler())
    scheduler.set_begin_index(1)
    x = torch.zeros(1)
    for index, t in enumerate(scheduler.timesteps[1:], start=1):
        assert find(scheduler, t / 1000) == index
        scheduler.step(x, t, x)


@pytest.mark.parametrize("timestep", [500, 500.0, torch.tensor(500), torch.tensor([[0.0, 501.0]])])
def test_the_value_of_a_timestep(timestep: Any) -> None:
    scheduler = begun(diffusers.DDIMScheduler())
    assert scheduler.timesteps.tolist() == [750, 500, 250, 0]
    assert find(scheduler, timestep) == 1


@pytest.mark.parametrize("timestep", [2000, torch.tensor(-200.0), None])
def test_a_timestep_of_another_schedule_is_refused(timestep: Any) -> None:
    with pytest.raises(InvalidInput) as caught:
        find(begun(diffusers.DDIMScheduler()), timestep)
    assert caught.value.param == "timestep"


def test_a_scheduler_that_was_not_begun_is_refused() -> None:
    with pytest.raises(InvalidInput, match="set_timesteps") as caught:
        find(diffusers.DDIMScheduler(), 3)
    assert caught.value.param == "scheduler"


def test_every_set_timesteps_is_a_new_course() -> None:
    scheduler = begun(diffusers.DDIMScheduler())
    source = SchedulerSteps(scheduler)
    first = source.locate(None, 750).course
    assert source.locate(None, 500).course is first
    begun(scheduler)
    assert source.locate(None, 750).course is not first
