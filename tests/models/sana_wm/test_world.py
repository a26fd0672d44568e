"""What the model says of itself, rollouts side by side and one after another, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.engine.listening import finish
from tests.models.sana_wm.latents import latents_of
from tests.models.sana_wm.requests import KEYS, picture, request, turning
from tests.models.sana_wm.tiny import CONFIGS, CPU
from worldcache.core import Conditioning, Observation
from worldcache.engine.engine import Engine, Limits
from worldcache.errors import InvalidInput
from worldcache.models.base import Row
from worldcache.models.sana_wm.loading import Sizes
from worldcache.models.sana_wm.world import SanaWMWorldModel
from worldcache.policies.registry import make_policy


def test_info_describes_the_model(model: SanaWMWorldModel) -> None:
    info = model.info
    assert info.action_space.describe()["keys"] == list("wasdijkl")
    assert info.resolution == (16, 24)
    assert (info.chunk_lengths, info.chunk_frames, info.observed_frames) == ((8, 16), 16, 1)
    assert (info.num_inference_steps, info.guidance_scale, info.fps) == (60, 5.0, 16.0)
    assert {"none", "quality", "balanced", "fast"} == set(info.presets)
    assert info.licence == "Apache-2.0"
    for preset in info.presets.values():
        make_policy(preset.policy, **preset.parameters)


def test_the_published_sizes_are_the_defaults() -> None:
    assert Sizes() == Sizes(704, 1280, 160)


def test_tokens_come_back(model: SanaWMWorldModel) -> None:
    output = torch.randn(2, *model.latent_shape(16))
    view = model.tokens(output.shape[1:])
    tokens = view.to_tokens(output)
    assert tokens.shape == (2 * 18, 8) and view.grids == {"rgb": (3, 2, 3)}
    assert torch.equal(tokens[4], output[0, :, 0, 1, 1])
    assert torch.equal(view.from_tokens(tokens), output)


@torch.inference_mode()
def test_the_given_frame_stays(model: SanaWMWorldModel) -> None:
    generator = torch.Generator().manual_seed(0)
    condition = model.condition(model.begin(Observation(frames=picture()[None])), KEYS, generator)
    latent = model.initial_latent(condition, 16, generator)
    assert torch.equal(latent[:, :1], condition.first)
    velocity = model.evaluate([Row(latent, 900.0, condition), Row(latent, 300.0, condition)])
    assert not velocity[:, :, :1].any() and velocity[:, :, 1:].any()
    assert not torch.allclose(velocity[0], velocity[1])


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_requests_side_by_side_equal_each_alone(model: SanaWMWorldModel, guidance: float) -> None:
    both = [
        request(KEYS, seed=1, steps=4, guidance=guidance),
        request(turning(16), seed=2, steps=6, guidance=guidance, image=1, conditioning=Conditioning(fov=60)),
    ]
    ticks: list[Any] = []
    with latents_of(model) as together:
        finish(Engine(observer=ticks.append), model, *both)
    with latents_of(model) as alone:
        for one in both:
            finish(Engine(), model, one)
    assert len(ticks) < sum(one.num_inference_steps for one in both)  # they did share calls
    widest = 2 * guidance - 1  # how much of its branches' rounding guidance may add up
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5 * widest)


def test_chunks_of_two_lengths_run_side_by_side(model: SanaWMWorldModel) -> None:
    short, long = finish(Engine(Limits(max_batch=4)), model, request(("w",) * 8), request(("w",) * 16))
    assert (len(short.rgb()), len(long.rgb())) == (9, 17)  # the observation comes first


@pytest.mark.parametrize(
    ("policy", "parameters"),
    [
        ("worldcache", {"warmup_steps": 3, "drift_threshold": 100.0}),
        ("interval", {"interval": 3}),
        ("taylor", {}),
        ("hicache", {}),
        ("easycache", {"threshold": 1.0}),
        ("forecast", {"full_steps": 5}),
    ],
)
def test_cached_rollouts_skip_steps(model: SanaWMWorldModel, policy: str, parameters: dict[str, Any]) -> None:
    exact, cached = finish(
        Engine(),
        model,
        request(steps=12, guidance=3.0),
        request(steps=12, guidance=3.0, policy=policy, **parameters),
    )
    assert cached.end.status == "succeeded", cached.end.error
    assert exact.end.stats.steps_full == 12
    assert 0 < cached.end.stats.steps_full < 12


def test_a_long_rollout_equals_two_from_the_state_between(model: SanaWMWorldModel) -> None:
    whole = request(("iw",) * 10 + ("dl",) * 22, guidance=2.0)
    (long,) = finish(Engine(), model, whole)
    (first,) = finish(Engine(), model, replace(whole, actions=whole.actions[:16]))
    state = first.chunks[-1].state
    assert state is not None and state.frames == 16
    (second,) = finish(
        Engine(), model, replace(whole, observation=None, state=state, actions=whole.actions[16:])
    )
    assert len(long.rgb()) == 33 and len(second.rgb()) == 16
    assert np.array_equal(np.concatenate([first.rgb(), second.rgb()]), long.rgb())


@torch.inference_mode()
def test_the_next_chunk_begins_with_the_last_frame_that_was_seen(model: SanaWMWorldModel) -> None:
    (listener,) = finish(Engine(), model, request())
    state = listener.chunks[-1].state
    assert state is not None
    with latents_of(model) as decoded_again:
        condition = model.condition(state.context, ("w",) * 8, torch.Generator())
    assert not decoded_again
    again = model.begin(Observation(frames=listener.rgb()[-1:]))
    assert torch.equal(condition.first, again.first)


def test_surplus_frames_are_dropped(model: SanaWMWorldModel) -> None:
    (listener,) = finish(Engine(), model, request(("w",) * 11))
    assert len(listener.rgb()) == 12
    assert listener.chunks[-1].state is None


@pytest.mark.parametrize(
    ("observation", "conditioning", "param"),
    [
        (Observation(), {}, "observation"),
        (Observation(start="centre"), {}, "observation.start"),
        (Observation(frames=np.zeros((1, 24, 16, 3), np.uint8)), {}, "observation.frames"),
        (Observation(frames=np.zeros((1, 16, 24, 4), np.uint8)), {}, "observation.frames"),
        (Observation(frames=picture()[None]), {"fov": 180.0}, "conditioning.fov"),
        (Observation(frames=picture()[None]), {"fov": float("nan")}, "conditioning.fov"),
        (Observation(frames=picture()[None]), {"fps": 8.0}, "conditioning.fps"),
        (Observation(frames=picture()[None]), {"task": "planning"}, "conditioning.task"),
        (Observation(frames=picture()[None]), {"goal": picture()}, "conditioning.goal"),
        (Observation(frames=picture()[None]), {"prompt": "a house"}, "conditioning.prompt"),
        (Observation(frames=picture()[None]), {"negative_prompt": ""}, "conditioning.negative_prompt"),
    ],
)
def test_what_cannot_be_begun_from_is_refused_by_name(
    model: SanaWMWorldModel, observation: Observation, conditioning: dict[str, Any], param: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        model.begin(observation, Conditioning(**conditioning))
    assert caught.value.param == param


def test_weights_are_reproducible_and_warm() -> None:
    one, same, other = (
        SanaWMWorldModel.random(device=CPU, dtype=torch.float32, seed=seed, configs=CONFIGS)
        for seed in (3, 3, 4)
    )
    first, second, third = (next(model.transformer.parameters()) for model in (one, same, other))
    assert torch.equal(first, second) and not torch.equal(first, third)
    assert all(parameter.any() for parameter in one.transformer.parameters())
    assert one.memory_bytes > 0
    one.warm()
    assert np.isfinite(finish(Engine(), one, request())[0].rgb()).all()


def test_half_precision_needs_another_device_than_the_cpu() -> None:
    with pytest.raises(InvalidInput, match="float32 only") as caught:
        SanaWMWorldModel.random(device=CPU, dtype=torch.bfloat16, configs=CONFIGS)
    assert caught.value.param == "dtype"
