"""What requests may ask of Aether, and what it makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from worldcache.core import UNCONDITIONED, Conditioning, Observation
from worldcache.decoded import Decoded
from worldcache.errors import InvalidInput
from worldcache.models.aether.context import IDENTITY, AetherContext, relative_poses
from worldcache.models.aether.latents import unpack_raymap
from worldcache.models.aether.world import AetherWorldModel
from worldcache.models.base import ChunkTask, Row
from worldcache.policies.choose import choose_policy
from worldcache.policies.registry import make_policy
from worldcache.policies.worldcache import PUBLISHED_PRESETS

RNG = np.random.default_rng(0)
FRAME = RNG.integers(0, 256, (1, 32, 48, 3), dtype=np.uint8)
GOAL = RNG.integers(0, 256, (32, 48, 3), dtype=np.uint8)
VIDEO = RNG.integers(0, 256, (33, 32, 48, 3), dtype=np.uint8)
LEFT = (None,) * 16


def shifted(x: float) -> tuple[tuple[float, ...], ...]:
    return ((1.0, 0.0, 0.0, x), *IDENTITY[1:])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_info_says_what_there_is(model: AetherWorldModel) -> None:
    info = model.info
    assert info.action_space.describe()["type"] == "camera_pose"
    assert [m.name for m in info.modalities] == ["rgb", "depth", "pose"]
    assert [m.name for m in info.pictures] == ["rgb", "depth"]
    assert info.chunk_lengths == (16, 24, 32, 40)
    assert info.chunk_frames == 40
    assert info.observed_frames == 1
    assert (info.num_inference_steps, info.guidance_scale) == (50, 3.0)
    assert info.task(Conditioning(task="reconstruction")).num_inference_steps == 4


def test_the_default_preset_is_the_published_one(model: AetherWorldModel) -> None:
    assert choose_policy(None, model.info).config == PUBLISHED_PRESETS["aether"]
    for name in model.info.presets:
        choose_policy(name, model.info)


def test_a_request_without_conditioning_predicts(model: AetherWorldModel) -> None:
    context = model.begin(Observation(frames=VIDEO))
    assert (context.task, context.fps, context.goal) == ("prediction", 12.0, None)
    assert np.array_equal(context.frames, VIDEO[-1:])


OBSERVED = Observation(frames=FRAME)
REFUSED: list[tuple[Observation, Conditioning, str]] = [
    (Observation(), UNCONDITIONED, "observation.frames"),
    (Observation(start="x"), UNCONDITIONED, "observation.frames"),
    (Observation(frames=FRAME[:0]), UNCONDITIONED, "observation.frames"),
    (Observation(frames=FRAME[:, :16]), UNCONDITIONED, "observation.frames"),
    (OBSERVED, Conditioning(task="dreaming"), "conditioning.task"),
    (OBSERVED, Conditioning(task="planning"), "conditioning.goal"),
    (OBSERVED, Conditioning(task="planning", goal=GOAL[:16]), "conditioning.goal"),
    (OBSERVED, Conditioning(goal=GOAL), "conditioning.goal"),
    (OBSERVED, Conditioning(fps=11), "conditioning.fps"),
    (OBSERVED, Conditioning(fov=float("nan")), "conditioning.fov"),
    (OBSERVED, Conditioning(fov=180), "conditioning.fov"),
    (OBSERVED, Conditioning(prompt="a dog"), "conditioning.prompt"),
    (OBSERVED, Conditioning(negative_prompt="a cat"), "conditioning.negative_prompt"),
]


@pytest.mark.parametrize(("observation", "conditioning", "param"), REFUSED)
def test_what_cannot_be_done_is_refused(
    model: AetherWorldModel, observation: Observation, conditioning: Conditioning, param: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        model.begin(observation, conditioning)
    assert caught.value.param == param


def test_a_video_that_is_too_short_is_refused(model: AetherWorldModel) -> None:
    context = model.begin(Observation(frames=VIDEO[:16]), Conditioning(task="reconstruction"))
    with pytest.raises(InvalidInput, match="16 frames") as caught:
        model.condition(context, LEFT, generator())
    assert caught.value.param == "observation.frames"


def test_a_reconstruction_cannot_be_guided(model: AetherWorldModel) -> None:
    context = model.begin(Observation(frames=VIDEO), Conditioning(task="reconstruction"))
    condition = model.condition(context, LEFT, generator())
    task = ChunkTask(make_policy("none"), condition, 16, 4, 3.0, generator())
    with pytest.raises(InvalidInput) as caught:
        model.own_denoiser(task)
    assert caught.value.param == "guidance_scale"
    assert model.own_denoiser(replace(task, guidance_scale=1.0)) is None


def test_no_camera_leaves_the_ray_map_empty(model: AetherWorldModel) -> None:
    condition = model.condition(model.begin(OBSERVED), LEFT, generator())
    assert condition.latents.shape == (5, 40, 4, 6)
    assert (condition.latents[:, 16:] == 0).all()
    assert (condition.latents[0, :16] != 0).any()


def test_cameras_are_written_into_the_ray_map(model: AetherWorldModel) -> None:
    actions = tuple(shifted(0.1 * (i + 1)) for i in range(16))
    context = model.begin(OBSERVED, Conditioning(fov=90))
    condition = model.condition(context, actions, generator())  # type: ignore[arg-type]
    raymap = unpack_raymap(condition.latents[:, 16:], 17)
    positions = raymap[:, 3, 0, 0]
    torch.testing.assert_close(positions, torch.log1p(torch.arange(17.0)))  # tenths of the unit
    # 48 pixels at 90 degrees are 24 pixels of focal length; the leftmost cell is 20.5 pixels aside
    torch.testing.assert_close(raymap[:, 0, 0, 0], torch.full((17,), -20.5 / 24))


def test_poses_are_relative_to_the_first_frame() -> None:
    context = AetherContext("prediction", 12.0, 90.0, FRAME, origin=shifted(2.0))  # type: ignore[arg-type]
    poses = relative_poses(context, [shifted(2.5), shifted(3.0)])  # type: ignore[list-item]
    assert poses is not None
    assert poses[:, 0, 3].tolist() == [0.0, 0.5, 1.0]
    assert relative_poses(context, [None, None]) is None
    with pytest.raises(InvalidInput):
        relative_poses(context, [IDENTITY, None])


def test_the_goal_has_the_last_slot(model: AetherWorldModel) -> None:
    context = model.begin(OBSERVED, Conditioning(task="planning", goal=GOAL))
    condition = model.condition(context, LEFT, generator())
    filled = (condition.latents[:, :16] != 0).flatten(1).any(dim=1)
    assert filled.tolist() == [True, False, False, False, True]
    assert condition.unguided is not None
    assert (condition.unguided[:, :16] == 0).all()


def test_frame_rates_do_not_share_a_batch(model: AetherWorldModel) -> None:
    latent = torch.zeros(model.latent_shape(16))
    rows = [
        Row(latent, 1.0, model.condition(model.begin(OBSERVED, Conditioning(fps=fps)), LEFT, generator()))
        for fps in (8, 12)
    ]
    assert model.batch_key(rows[0]) != model.batch_key(rows[1])
    outputs = [model.evaluate([row]) for row in rows]
    assert not torch.allclose(outputs[0], outputs[1])


def test_rows_of_all_tasks_share_a_batch(model: AetherWorldModel) -> None:
    asked = {
        "prediction": (FRAME, Conditioning()),
        "planning": (FRAME, Conditioning(task="planning", goal=GOAL)),
        "reconstruction": (VIDEO, Conditioning(task="reconstruction")),
    }
    rows = []
    for index, (frames, conditioning) in enumerate(asked.values()):
        context = model.begin(Observation(frames=frames), conditioning)
        condition = model.condition(context, LEFT, generator(index))
        latent = model.initial_latent(condition, 16, generator(index + 10))
        rows.append(Row(latent, 900.0 - 300 * index, condition))
    rows.append(replace(rows[0], unconditional=True))
    assert len({model.batch_key(row) for row in rows}) == 1
    together = model.evaluate(rows)
    assert together.dtype == torch.float32
    for row, output in zip(rows, together, strict=True):
        torch.testing.assert_close(model.evaluate([row])[0], output, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(together[0], together[3])


def test_frames_have_their_units(model: AetherWorldModel) -> None:
    latent = torch.randn(model.latent_shape(16), generator=generator())
    frames, pictures = model.decode(latent), model.render(latent)
    assert {name: (array.dtype.name, array.shape) for name, array in frames.items()} == {
        "rgb": ("uint8", (17, 32, 48, 3)),
        "depth": ("float32", (17, 32, 48)),
        "pose": ("float32", (17, 4, 4)),
    }
    assert frames["depth"].min() >= 1
    assert frames["depth"].max() <= 1000
    assert {*pictures} == {"rgb", "depth"}
    assert np.array_equal((pictures["rgb"] * 255).round().numpy(), frames["rgb"])
    assert np.allclose(pictures["depth"].numpy(), np.minimum(frames["depth"] / 100, 1))
    turns = frames["pose"][:, :3, :3]
    assert np.allclose(turns @ turns.transpose(0, 2, 1), np.eye(3), atol=1e-4)


def advance(
    model: AetherWorldModel, context: AetherContext, latent: torch.Tensor, actions: Sequence[Any]
) -> AetherContext:
    return model.advance(context, latent, Decoded(partial(model.decode, latent)), actions)


def test_the_next_chunk_starts_from_the_last_frame(model: AetherWorldModel) -> None:
    latent = torch.randn(model.latent_shape(16), generator=generator())
    begun = model.begin(OBSERVED)
    actions = (shifted(0.5),) * 16
    context = advance(model, begun, latent, actions)
    last = model.begin(Observation(frames=model.decode(latent)["rgb"][-1:]))
    assert begun.before is None
    assert context.origin == shifted(0.5)
    chained = model.condition(context, LEFT, generator())
    afresh = model.condition(last, LEFT, generator())
    assert torch.equal(chained.latents, afresh.latents)
    assert advance(model, context, latent, LEFT).origin == IDENTITY


def test_a_reconstruction_goes_on_with_the_video(model: AetherWorldModel) -> None:
    begun = model.begin(Observation(frames=VIDEO), Conditioning(task="reconstruction"))
    latent = torch.zeros(model.latent_shape(16))
    after = advance(model, begun, latent, LEFT)
    assert np.array_equal(after.frames, VIDEO[16:])
    model.condition(after, LEFT, generator())
    with pytest.raises(InvalidInput):
        model.condition(advance(model, after, latent, LEFT), LEFT, generator())


def contexts(model: AetherWorldModel) -> list[AetherContext]:
    latent = torch.randn(model.latent_shape(16), generator=generator())
    predicted = model.begin(OBSERVED, Conditioning(fps=8, fov=60))
    return [
        predicted,
        advance(model, predicted, latent, (shifted(0.5),) * 16),
        model.begin(OBSERVED, Conditioning(task="planning", goal=GOAL)),
        model.begin(Observation(frames=VIDEO), Conditioning(task="reconstruction")),
    ]


@pytest.mark.parametrize("index", range(4))
def test_contexts_survive_their_export(model: AetherWorldModel, index: int) -> None:
    context = contexts(model)[index]
    arrays = model.export_context(context)
    again = model.import_context(arrays)
    assert (again.task, again.fps, again.fov, again.origin) == (
        context.task,
        context.fps,
        context.fov,
        context.origin,
    )
    ours, theirs = (model.condition(c, LEFT, generator(1)) for c in (context, again))
    assert torch.equal(ours.latents, theirs.latents)


SPOILED: list[tuple[str, Any]] = [
    ("frames", np.zeros((0, 32, 48, 3), np.uint8)),
    ("frames", np.zeros((1, 16, 48, 3), np.uint8)),
    ("frames", np.uint8(3)),
    ("goal", np.zeros((1, 32, 48, 3), np.uint8)),
    ("origin", np.full((4, 4), np.nan)),
    ("origin", np.zeros((4, 4))),
    ("request", np.array([0.5, 12.0, 90.0])),
    ("request", np.array([3.0, 12.0, 90.0])),
    ("request", np.array([0.0, 13.0, 90.0])),
    ("request", np.array([0.0, 12.0, 1.0])),
    ("stranger", np.zeros(1)),
]


@pytest.mark.parametrize(("name", "value"), SPOILED)
def test_spoiled_contexts_are_refused(model: AetherWorldModel, name: str, value: Any) -> None:
    arrays = model.export_context(model.begin(OBSERVED))
    with pytest.raises(InvalidInput) as caught:
        model.import_context({**arrays, name: np.asarray(value)})
    assert caught.value.param == name


def test_incomplete_contexts_are_refused(model: AetherWorldModel) -> None:
    arrays = model.export_context(model.begin(OBSERVED))
    for name in arrays:
        with pytest.raises(InvalidInput) as caught:
            model.import_context({key: array for key, array in arrays.items() if key != name})
        assert caught.value.param == name


def test_tokens_of_equal_shapes_have_one_view(model: AetherWorldModel) -> None:
    view = model.tokens(torch.Size(model.latent_shape(16)))
    assert view is model.tokens(model.latent_shape(16))
    assert view.layout.tokens_per_branch == 3 * 5 * 4 * 6
    assert view.grids["rgb"] == (5, 4, 6)


def test_warming_up_runs_every_part(model: AetherWorldModel) -> None:
    model.warm()
