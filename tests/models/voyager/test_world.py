"""Voyager as a world model: what it says of itself, what it refuses, rollouts through the engine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.engine.listening import Listener, finish
from tests.models.voyager.tiny import FRAMES, LENGTH, PROMPTS, SIZE, VAE_CONFIG, observe
from worldcache.actions import CameraPoseActionSpace, Pose
from worldcache.cameras import trajectory
from worldcache.core import Conditioning, Observation
from worldcache.engine.engine import Engine, Tick
from worldcache.engine.rollout import RolloutRequest
from worldcache.errors import InvalidInput
from worldcache.models.base import Row
from worldcache.models.voyager.depth import DepthEstimator
from worldcache.models.voyager.world import VoyagerWorldModel
from worldcache.policies.registry import make_policy

CORRIDOR = Conditioning(prompt=PROMPTS[2])
GARDEN = Conditioning(prompt=PROMPTS[3], negative_prompt=PROMPTS[0])


def request(
    path: str = "forward",
    policy: str = "none",
    seed: int = 1,
    steps: int = 4,
    guidance: float = 6.0,
    conditioning: Conditioning = CORRIDOR,
    **parameters: Any,
) -> RolloutRequest:
    return RolloutRequest(
        observe(seed),
        trajectory(path, FRAMES - 1),
        make_policy(policy, **parameters),
        seed,
        steps,
        guidance,
        conditioning=conditioning,
    )


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def test_what_it_says_of_itself(model: VoyagerWorldModel) -> None:
    info = model.info
    assert isinstance(info.action_space, CameraPoseActionSpace) and not info.action_space.optional
    assert info.resolution == SIZE
    assert (info.observed_frames, info.chunk_frames, info.chunk_lengths) == (1, FRAMES - 1, (FRAMES - 1,))
    assert [modality.name for modality in info.modalities] == ["rgb", "depth"]
    assert info.conditioning == {"prompt": PROMPTS, "negative_prompt": PROMPTS}
    assert info.default_preset in info.presets and "none" in info.presets
    assert info.notice and "South Korea" in info.notice
    for preset in info.presets.values():
        make_policy(preset.policy, **preset.parameters)


def test_a_rollout_shows_the_observation_first(model: VoyagerWorldModel) -> None:
    (listener,) = finish(Engine(), model, request())
    (chunk,) = listener.chunks
    assert listener.end.status == "succeeded"
    assert chunk.frames["rgb"].shape == (FRAMES, *SIZE, 3) and chunk.frames["rgb"].dtype == np.uint8
    assert chunk.frames["depth"].shape == (FRAMES, *SIZE) and chunk.frames["depth"].dtype == np.float32
    assert 0 <= chunk.frames["depth"].min() and chunk.frames["depth"].max() <= 1 + 1e-6


def test_rollouts_share_batches_and_stay_themselves(model: VoyagerWorldModel) -> None:
    mix = [
        request("left", seed=3),
        request("turn_right", "worldcache", 4, 9, conditioning=GARDEN, warmup_steps=3),
        request("orbit_left", "interval", 5, 6, 1.0, interval=2),
    ]
    ticks: list[Tick] = []
    together = finish(Engine(observer=ticks.append), model, *mix)
    assert max(tick.rows for tick in ticks) == 5
    for one, listener in zip(mix, together, strict=True):
        (alone,) = finish(Engine(), model, one)
        assert_same(alone, listener)
    assert not np.array_equal(together[0].rgb(), together[1].rgb())


def assert_same(one: Listener, other: Listener) -> None:
    assert one.end.status == other.end.status == "succeeded"
    assert one.decisions == other.decisions
    for mine, theirs in zip(one.chunks, other.chunks, strict=True):
        assert np.abs(mine.frames["rgb"].astype(int) - theirs.frames["rgb"]).max() <= 1
        np.testing.assert_allclose(mine.frames["depth"], theirs.frames["depth"], atol=1e-4)


@pytest.mark.parametrize(
    "changed",
    [
        request("backward"),
        request(conditioning=GARDEN),
        request(guidance=2.0),
        request(conditioning=Conditioning(prompt=PROMPTS[2], negative_prompt=PROMPTS[3])),
    ],
    ids=["camera", "prompt", "guidance", "negative prompt"],
)
def test_everything_asked_for_matters(model: VoyagerWorldModel, changed: RolloutRequest) -> None:
    one, other = finish(Engine(), model, request(), changed)
    assert not np.array_equal(one.chunks[0].frames["depth"], other.chunks[0].frames["depth"])


def test_rows_with_texts_of_other_lengths_do_not_share_a_batch(model: VoyagerWorldModel) -> None:
    context = model.begin(observe())
    condition = model.condition(context, trajectory("left", FRAMES - 1), generator())
    latent = model.initial_latent(condition, FRAMES - 1, generator())
    one, other = Row(latent, 1.0, condition), Row(latent, 2.0, condition, unconditional=True)
    assert model.batch_key(one) == model.batch_key(other)
    assert LENGTH in model.batch_key(one)  # type: ignore[operator]


def test_draws_come_from_the_chunks_generator(model: VoyagerWorldModel) -> None:
    context, poses = model.begin(observe()), trajectory("left", FRAMES - 1)
    torch.manual_seed(1)
    draws = generator()
    one = model.condition(context, poses, draws)
    first = model.initial_latent(one, FRAMES - 1, draws)
    torch.manual_seed(2)
    draws = generator()
    other = model.condition(context, poses, draws)
    assert torch.equal(first, model.initial_latent(other, FRAMES - 1, draws))
    assert torch.equal(one.channels, other.channels)
    another = model.condition(context, poses, torch.Generator().manual_seed(6))
    assert not torch.equal(one.channels, another.channels)


def test_the_initial_latent_holds_a_thousandth_of_the_reference(model: VoyagerWorldModel) -> None:
    condition = model.condition(model.begin(observe()), trajectory("left", FRAMES - 1), generator())
    noise = torch.randn(model.latent_shape(FRAMES - 1), generator=generator())
    latent = model.initial_latent(condition, FRAMES - 1, generator())
    torch.testing.assert_close(latent, 0.999 * noise + 0.001 * condition.reference, rtol=0, atol=1e-6)


def test_without_depth(model: VoyagerWorldModel) -> None:
    with pytest.raises(InvalidInput, match="depth_estimator") as caught:
        model.begin(Observation(frames=observe().frames))
    assert caught.value.param == "observation.depth"


class Half(torch.nn.Module):
    """Says that everything is half as far as its channels' mean."""

    dtype = torch.float32

    def forward(self, pixel_values: torch.Tensor) -> Any:
        depth = pixel_values.mean(1)[:, ::2, ::2] / 2
        return type("Output", (), {"predicted_depth": depth})


def test_an_estimator_makes_the_depth(folder: Path) -> None:
    def processor(images: Any, return_tensors: str) -> dict[str, torch.Tensor]:
        return {"pixel_values": torch.full((1, 3, *SIZE), 5.0)}

    estimator = DepthEstimator(Half(), processor, device=torch.device("cpu"))
    depth = estimator.estimate(np.zeros((*SIZE, 3), np.uint8))
    np.testing.assert_array_equal(depth, np.full(SIZE, 2.5, np.float32))


def wrong_depths() -> dict[str, np.ndarray]:
    good = observe().depth
    assert good is not None
    negative, hole, infinite = good.copy(), good * 0, good.copy()
    negative[0, 3, 3], infinite[0, 0, 0] = -1, np.inf
    return {"size": good[:, 1:], "negative": negative, "nothing": hole, "far": hole + 1e5, "inf": infinite}


@pytest.mark.parametrize("depth", wrong_depths().values(), ids=wrong_depths())
def test_wrong_depth_is_refused(model: VoyagerWorldModel, depth: np.ndarray) -> None:
    with pytest.raises(InvalidInput) as caught:
        model.begin(Observation(frames=observe().frames, depth=depth))
    assert caught.value.param == "observation.depth"


@pytest.mark.parametrize(
    ("observation", "param"),
    [
        (Observation(start="centre"), "observation.start"),
        (Observation(), "observation.frames"),
        (Observation(frames=np.zeros((0, *SIZE, 3), np.uint8)), "observation.frames"),
        (Observation(frames=np.zeros((1, 16, 16, 3), np.uint8)), "observation.frames"),
    ],
)
def test_wrong_observations_are_refused(
    model: VoyagerWorldModel, observation: Observation, param: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        model.begin(observation)
    assert caught.value.param == param


@pytest.mark.parametrize("name", ["prompt", "negative_prompt"])
def test_prompts_that_nobody_embedded_are_refused(model: VoyagerWorldModel, name: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        model.begin(observe(), Conditioning(**{name: "a castle"}))
    assert caught.value.param == f"conditioning.{name}"


@pytest.mark.parametrize(
    "depth",
    [np.full((1, *SIZE), 2.0, np.float32), np.eye(*SIZE, dtype=np.float32)[None] * 1e-20],
    ids=["flat", "almost unknown"],
)
def test_odd_depth_gives_finite_conditions(model: VoyagerWorldModel, depth: np.ndarray) -> None:
    context = model.begin(Observation(frames=observe().frames, depth=depth))
    away: Pose = ((-1.0, 0, 0, 9.0), (0, 1.0, 0, 0), (0, 0, -1.0, 9.0), (0, 0, 0, 1.0))
    condition = model.condition(context, (away,) * (FRAMES - 1), generator())
    assert condition.channels.isfinite().all()


def go_on(model: VoyagerWorldModel, state: Any, path: str = "left") -> Listener:
    asked = RolloutRequest(None, trajectory(path, FRAMES - 1), make_policy("none"), 1, 3, 6.0, state=state)
    return finish(Engine(), model, asked)[0]


def test_a_session_goes_on_from_its_last_frame(model: VoyagerWorldModel) -> None:
    (first,) = finish(Engine(), model, request())
    state = first.chunks[-1].state
    assert state is not None
    scene = state.context.scene.get()
    np.testing.assert_array_equal(scene.image, first.chunks[-1].frames["rgb"][-1])
    assert scene.depth.min() > 0 and np.isfinite(scene.depth).all()
    assert state.context.prompt is model.begin(observe(1), CORRIDOR).prompt or torch.equal(
        state.context.prompt.tokens, model.begin(observe(1), CORRIDOR).prompt.tokens
    )
    second = go_on(model, state)
    assert second.chunks[0].frames["rgb"].shape == (FRAMES - 1, *SIZE, 3)
    assert not np.array_equal(second.rgb(), go_on(model, state, "right").rgb())


def test_a_context_can_be_written_down(model: VoyagerWorldModel) -> None:
    (first,) = finish(Engine(), model, request())
    state = first.chunks[-1].state
    assert state is not None
    arrays = model.export_context(state.context)
    restored = type(state)(model.import_context(arrays), state.frames)
    np.testing.assert_array_equal(go_on(model, restored).rgb(), go_on(model, state).rgb())


def broken_contexts(arrays: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    broken: dict[str, dict[str, np.ndarray]] = {name: dict(arrays) for name in arrays}
    broken["image"]["image"] = arrays["image"][1:]
    broken["depth"]["depth"] = -arrays["depth"]
    broken["tokens"]["tokens"] = arrays["tokens"] * np.float32("nan")
    broken["pooled"].pop("pooled")
    broken["mask"]["mask"] = arrays["mask"] * 0
    return broken


def test_a_context_that_is_none_is_refused(model: VoyagerWorldModel) -> None:
    arrays = model.export_context(model.begin(observe()))
    for name, wrong in broken_contexts(arrays).items():
        with pytest.raises(InvalidInput) as caught:
            model.import_context(wrong)
        assert caught.value.param == name
    with pytest.raises(InvalidInput):
        model.import_context({**arrays, "tokens": arrays["tokens"][0]})
    with pytest.raises(InvalidInput):
        model.import_context({})


def test_random_weights_of_any_size() -> None:
    configs = {
        "transformer": {
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "num_layers": 1,
            "num_single_layers": 1,
            "num_refiner_layers": 1,
            "text_embed_dim": 8,
            "pooled_projection_dim": 6,
            "rope_axes_dim": (4, 6, 6),
        },
        "vae": {
            name: VAE_CONFIG[name] for name in ("block_out_channels", "layers_per_block", "norm_num_groups")
        },
        "world": {"resolution": SIZE, "frames": 5},
    }
    options: dict[str, Any] = {"device": torch.device("cpu"), "dtype": torch.float32, "configs": configs}
    model = VoyagerWorldModel.random(**options)
    again, other = VoyagerWorldModel.random(**options), VoyagerWorldModel.random(**options, seed=1)
    weight = model.transformer.proj_out.weight
    assert torch.equal(weight, again.transformer.proj_out.weight)
    assert not torch.equal(weight, other.transformer.proj_out.weight)
    model.warm()
    asked = RolloutRequest(observe(), trajectory("left", 4), make_policy("none"), 1, 2, 6.0)
    (listener,) = finish(Engine(), model, asked)
    assert listener.end.status == "succeeded"
