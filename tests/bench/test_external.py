"""Caches of other projects on a transformer with random weights, and off it again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from worldcache.bench.calibrated import PolicyMaker
from worldcache.bench.external import HOOKS, generate_hooked, residual_ratios
from worldcache.bench.settings import SETTINGS
from worldcache.bench.solvers import flow_shift
from worldcache.bench.work import Work
from worldcache.bench.wrapper import BenchWorldModel
from worldcache.errors import InvalidInput
from worldcache.models.calibration import Calibration
from worldcache.models.doom.transformer import ActionTransformer3DModel
from worldcache.models.doom.world import DoomWorldModel
from worldcache.training.evaluate import Sample

WORLD = {
    "id": "random",
    "description": "random weights",
    "actions": ["NOOP", "MOVE_LEFT", "MOVE_RIGHT", "ATTACK"],
    "fps": 17.5,
    "depth_max": 62.0,
    "depth_unit": "steps",
    "num_inference_steps": 10,
    "presets": {"none": {"policy": "none"}},
    "default_preset": "none",
    "licence": "Apache-2.0",
}
PARAMETERS = {
    "taylorseer": {"cache_interval": 3},
    "first_block": {"threshold": 10.0},
    "magcache": {"threshold": 10.0, "max_skip_steps": 3, "retention_ratio": 0.2},
    "cache_dit": {"residual_diff_threshold": 10.0},
}


@pytest.fixture(scope="module")
def model() -> DoomWorldModel:
    torch.manual_seed(0)
    transformer = ActionTransformer3DModel(width=32, depth=3, heads=2, head_hidden=8)
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return DoomWorldModel(
        transformer, scheduler, WORLD, {}, Calibration(), device=torch.device("cpu"), dtype=torch.float32
    )


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    frames = np.random.default_rng(0).integers(0, 60, (2, 8, 48, 64, 4), np.uint8)
    return [Sample(f, np.zeros(8, np.uint8), context=4) for f in frames]


def run(model: DoomWorldModel, samples: list[Sample], hook: str) -> tuple[list[torch.Tensor], float]:
    parameters = dict(PARAMETERS[hook])
    if hook == "magcache":
        parameters["mag_ratios"] = residual_ratios(model, samples, SETTINGS["base"], 10, seed=0)
    return generate_hooked(model, samples, hook, parameters, SETTINGS["base"], num_steps=10, batch=2, seed=0)


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_skips_work_and_leaves_nothing_behind(
    hook: str, model: DoomWorldModel, samples: list[Sample]
) -> None:
    if hook == "cache_dit":
        pytest.importorskip("cache_dit")
    weights = {name: value.clone() for name, value in model.transformer.state_dict().items()}
    forward = type(model.transformer).forward
    latents, full = run(model, samples, hook)
    again, again_full = run(model, samples, hook)
    assert 1 < full < 10
    assert again_full == full
    assert all(torch.equal(a, b) for a, b in zip(latents, again, strict=True))
    assert model.transformer.forward.__func__ is forward
    assert set(model.transformer.state_dict()) == set(weights)
    assert not model.transformer.is_cache_enabled


def test_hooks_know_no_guidance(model: DoomWorldModel, samples: list[Sample]) -> None:
    with pytest.raises(InvalidInput, match="without guidance"):
        generate_hooked(model, samples, "magcache", {}, SETTINGS["guided3"], num_steps=10, batch=2, seed=0)


def test_the_shift_of_a_models_noise_levels_is_read(model: DoomWorldModel) -> None:
    assert flow_shift(model) == pytest.approx(3.0)


def test_policies_that_need_a_calibration_get_one_of_the_setting(
    model: DoomWorldModel, samples: list[Sample]
) -> None:
    work = Work(samples, {}, (False, False))
    maker = PolicyMaker(BenchWorldModel(model), work, SETTINGS["base"], num_steps=10, seed=0)
    assert len(maker.calibration("magcache")["ratios"]) == 10
    assert maker.make("teacache", {}).config.coefficients
    assert maker.calibration("worldcache") == {}


def test_one_frame_of_context_is_the_newest(samples: list[Sample]) -> None:
    seen = SETTINGS["single_frame"].observe(samples[0].observation)
    assert seen.frames is not None
    assert seen.depth is not None
    assert np.array_equal(seen.frames[0], samples[0].frames[3, ..., :3])
    assert len(seen.frames) == len(seen.depth) == 1
