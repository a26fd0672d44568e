"""The built-in world, with tiny random weights through the same loading code as the real ones."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import worldcache
from worldcache.core import Observation, Preset
from worldcache.decoded import Decoded
from worldcache.errors import InvalidInput, ModelLoadError, PolicyNotCalibrated, UnknownName
from worldcache.models.base import Row, WorldModel
from worldcache.models.doom.world import DoomWorldModel
from worldcache.policies.choose import choose_policy


def test_info_describes_the_world(model: DoomWorldModel) -> None:
    info = model.info
    assert info.action_space.describe()["names"] == ["NOOP", "MOVE_LEFT", "MOVE_RIGHT", "ATTACK"]
    assert [m.name for m in info.modalities] == ["rgb", "depth"]
    assert info.resolution == (48, 64)
    assert info.fps == 17.5
    assert info.starts == ("centre",)
    assert {"none", "quality", "balanced", "fast"} <= set(info.presets)


def test_a_start_brings_its_frames_and_actions(model: DoomWorldModel) -> None:
    context = model.begin(Observation(start="centre"))
    assert context.frames.shape == (4, 4, 48, 64)
    assert context.actions == (1, 1, 2, 3)


def test_one_frame_is_repeated_to_fill_the_context(model: DoomWorldModel) -> None:
    frame = np.full((1, 48, 64, 3), 255, np.uint8)
    context = model.begin(Observation(frames=frame))
    assert (context.frames[:3] == 1).all()
    assert (context.frames[3] == 0).all()  # unknown depth is the middle of the range
    assert context.actions == (0, 0, 0, 0)


def test_depth_is_scaled_to_its_range(model: DoomWorldModel) -> None:
    frames = np.zeros((4, 48, 64, 3), np.uint8)
    depth = np.full((4, 48, 64), 62.0, np.float32)
    assert (model.begin(Observation(frames=frames, depth=depth)).frames[3] == 1).all()


@pytest.mark.parametrize(
    ("observation", "param"),
    [
        (Observation(start="nowhere"), "observation.start"),
        (Observation(), "observation"),
        (Observation(frames=np.zeros((1, 48, 48, 3), np.uint8)), "observation.frames"),
        (
            Observation(frames=np.zeros((2, 48, 64, 3), np.uint8), depth=np.zeros((1, 48, 64), np.float32)),
            "observation.frames",
        ),
    ],
)
def test_a_bad_observation_names_its_field(
    model: DoomWorldModel, observation: Observation, param: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        model.begin(observation)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("actions", "param"),
    [(["JUMP"], "actions.0"), ([0, 4], "actions.1"), ([0, -1], "actions.1"), ([0, 1, 0.5], "actions.2")],
)
def test_a_bad_action_names_its_entry(model: DoomWorldModel, actions: list[object], param: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        model.info.action_space.parse(actions)
    assert caught.value.param == param


def test_names_and_indices_mean_the_same(model: DoomWorldModel) -> None:
    assert model.info.action_space.parse(["ATTACK", 3, "NOOP", 0]) == (3, 3, 0, 0)


@pytest.mark.parametrize("branches", [1, 2])
def test_tokens_come_back(model: DoomWorldModel, branches: int) -> None:
    output = torch.randn(branches, 4, 4, 48, 64)
    view = model.tokens(output.shape[1:])
    tokens = view.to_tokens(output)
    assert tokens.shape == (branches * 192, 384)
    assert torch.equal(view.from_tokens(tokens), output)


def test_modalities_keep_to_their_tokens(model: DoomWorldModel) -> None:
    output = torch.zeros(1, 4, 4, 48, 64)
    output[:, 3] = 1.0
    view = model.tokens(output.shape[1:])
    layout, tokens = view.layout, view.to_tokens(output)
    assert layout.names == ("rgb", "depth")
    assert not tokens[layout.slices("rgb")[0]].any()
    assert (tokens[layout.slices("depth")[0]].sum(-1) == 128).all()


def test_a_token_is_a_patch_where_the_grid_has_it(model: DoomWorldModel) -> None:
    output = torch.zeros(1, 4, 4, 48, 64)
    output[:, :3, 2:4, 8:16, 40:48] = 1.0  # second pair of frames, second row of patches, sixth column
    view = model.tokens(output.shape[1:])
    assert view.grids == {"rgb": (2, 6, 8), "depth": (2, 6, 8)}
    filled = view.to_tokens(output).abs().sum(-1).nonzero().flatten()
    assert filled.tolist() == [(1 * 6 + 1) * 8 + 5]
    assert view.to_tokens(output)[filled].eq(1.0).all()


@torch.inference_mode()
def test_the_unconditional_branch_ignores_the_actions(model: DoomWorldModel) -> None:
    context = model.begin(Observation(start="centre"))
    latent = model.initial_latent(None, 4, torch.Generator().manual_seed(0))
    left, right = (model.condition(context, (action,) * 4, torch.Generator()) for action in (1, 2))
    outputs = model.evaluate(
        [
            Row(latent, 900.0, left),
            Row(latent, 900.0, right),
            Row(latent, 900.0, left, True),
            Row(latent, 900.0, right, True),
        ]
    )
    assert not torch.allclose(outputs[0], outputs[1])
    assert torch.allclose(outputs[2], outputs[3], atol=1e-5)


def test_decoding_inverts_the_scale(model: DoomWorldModel) -> None:
    start = model.begin(Observation(start="centre"))
    frames = model.decode(start.frames)
    again = model.begin(Observation(frames=frames["rgb"], depth=frames["depth"]))
    assert torch.allclose(start.frames, again.frames, atol=1e-5)


def test_the_context_moves_on(model: DoomWorldModel) -> None:
    context = model.begin(Observation(start="centre"))
    latent = torch.full((4, 4, 48, 64), 2.0)
    moved = model.advance(context, latent, Decoded(partial(model.decode, latent)), (0, 1, 2, 3))
    assert (moved.frames == 1).all()  # clamped to what a frame can hold
    assert moved.actions == (0, 1, 2, 3)


def test_a_rollout_repeats_with_its_seed_and_follows_its_actions(model: DoomWorldModel) -> None:
    def frames(action: str, seed: int) -> np.ndarray:
        result = worldcache.rollout(model, actions=[action] * 5, seed=seed, num_inference_steps=6)
        return result.frames["depth"]

    first = frames("MOVE_LEFT", 1)
    assert first.shape == (5, 48, 64)
    assert np.array_equal(first, frames("MOVE_LEFT", 1))
    assert not np.array_equal(first, frames("MOVE_LEFT", 2))
    assert not np.array_equal(first, frames("MOVE_RIGHT", 1))


def test_the_modulated_input_is_what_the_first_attention_sees(model: DoomWorldModel) -> None:
    context = model.begin(Observation(start="centre"))
    latent = model.initial_latent(None, 4, torch.Generator().manual_seed(0))
    row = Row(latent, 700.0, model.condition(context, (0, 1, 2, 3), torch.Generator()))
    seen: list[torch.Tensor] = []
    attention = model.transformer.transformer_blocks[0].attn
    handle = attention.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    model.evaluate([row])
    handle.remove()
    assert model.offers_modulated_input
    torch.testing.assert_close(model.modulated_input(row), seen[0][0])
    other = Row(latent, 300.0, row.condition)
    assert not torch.allclose(model.modulated_input(other), seen[0][0])


def calibrated(folder: Path, tmp_path: Path, calibration: Any) -> WorldModel:
    """The model with this calibration beside it."""
    copied = shutil.copytree(folder, tmp_path / "model")
    (copied / "calibration.json").write_text(json.dumps(calibration))
    return worldcache.load_model("doom", path=copied)


def test_a_calibration_beside_the_weights_is_read(folder: Path, tmp_path: Path) -> None:
    fast = {"policy": "magcache", "parameters": {"max_skip": 3}, "measured": {"psnr": 31.0}}
    policies = {"magcache": {"ratios": [1.0, 0.9]}, "teacache": {"coefficients": [2.0, 0.0]}}
    info = calibrated(
        folder, tmp_path, {"policies": policies, "presets": {"fast": fast}, "auto": "fast"}
    ).info
    assert info.presets["fast"] == info.preset("auto") == Preset("magcache", {"max_skip": 3}, {"psnr": 31.0})
    assert info.presets["balanced"].policy == "worldcache"
    assert info.default_preset == "balanced"
    assert choose_policy("auto", info).config.ratios == (1.0, 0.9)
    assert choose_policy({"policy": "teacache"}, info).config.coefficients == (2.0, 0.0)


def test_without_a_calibration_auto_is_the_default(model: DoomWorldModel) -> None:
    assert model.info.auto_preset is None
    assert model.info.preset("auto") == model.info.presets[model.info.default_preset]
    with pytest.raises(PolicyNotCalibrated):
        choose_policy({"policy": "magcache"}, model.info)


@pytest.mark.parametrize(
    "calibration",
    [
        [],
        {"auto": "fastest"},
        {"policy": {}},
        {"policies": {"magcash": {}}},
        {"policies": {"magcache": {"ratios": "high"}}},
        {"policies": {"magcache": {"max_skip": 3}}},
        {"policies": ["magcache"]},
        {"presets": {"fast": {"parameters": {}}}},
        {"presets": {"fast": {"policy": "interval", "parameters": {"interval": 0}}}},
    ],
)
def test_a_calibration_that_cannot_be_used_is_told(folder: Path, tmp_path: Path, calibration: Any) -> None:
    with pytest.raises(ModelLoadError, match="cannot be loaded"):
        calibrated(folder, tmp_path, calibration)


def test_a_missing_file_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"world\.json"):
        worldcache.load_model("doom", path=tmp_path)


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(UnknownName, match="doom"):
        worldcache.load_model("quake")
    with pytest.raises(UnknownName, match="bfloat16"):
        worldcache.load_model("doom", dtype="int8")
    with pytest.raises(InvalidInput, match="device"):
        worldcache.load_model("doom", device="abacus")


def test_weights_ship_in_bfloat16(folder: Path) -> None:
    from safetensors import safe_open

    with safe_open(folder / "transformer" / "diffusion_pytorch_model.safetensors", "pt") as weights:
        assert {weights.get_tensor(key).dtype for key in weights.keys()} == {torch.bfloat16}
