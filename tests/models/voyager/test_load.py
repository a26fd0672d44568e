"""Loading: the published layout, diffusers' layout, and what is wrong with a folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors.torch import save_file
from torch import Tensor

from tests.engine.listening import finish
from tests.models.voyager.tiny import (
    CHECKPOINT,
    FRAMES,
    PLAIN_CHECKPOINT,
    TEXT,
    VAE,
    observe,
    write_folder,
)
from worldcache.cameras import trajectory
from worldcache.engine.engine import Engine
from worldcache.engine.rollout import RolloutRequest
from worldcache.errors import ModelLoadError
from worldcache.models.registry import load_model
from worldcache.models.voyager.world import VoyagerWorldModel
from worldcache.policies.registry import make_policy

WEIGHT = "double_blocks.1.img_attn_qkv.weight"


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Edit the published weights of a folder."""
    data = torch.load(path / CHECKPOINT, weights_only=True)
    edit(data["module"])
    torch.save(data, path / CHECKPOINT)


def error_of(path: Path) -> str:
    with pytest.raises(ModelLoadError) as caught:
        load_model("voyager", path=path)
    return str(caught.value)


def test_no_path() -> None:
    with pytest.raises(ModelLoadError, match="without weights"):
        load_model("voyager")


@pytest.mark.parametrize("name", [CHECKPOINT, f"{VAE}/config.json", f"{VAE}/pytorch_model.pt"])
def test_a_missing_file_is_named(copied: Path, name: str) -> None:
    (copied / name).unlink()
    assert name in error_of(copied)


def test_missing_text_is_named(copied: Path) -> None:
    (copied / TEXT).unlink()
    assert "text_encoder_i2v" in error_of(copied)


def test_a_missing_key_is_named(copied: Path) -> None:
    change(copied, lambda module: module.pop(WEIGHT))
    assert WEIGHT in error_of(copied)


@pytest.mark.parametrize("key", ["img_in.proj.weight", "zero_linear1.bias", "context_block2.linear1.weight"])
def test_other_missing_keys_are_named(copied: Path, key: str) -> None:
    change(copied, lambda module: module.pop(key))
    assert key in error_of(copied)


def test_an_unexpected_key_is_named(copied: Path) -> None:
    change(copied, lambda module: module.update({"guidance_in.mlp.0.weight": torch.zeros(1)}))
    assert "guidance_in.mlp.0.weight" in error_of(copied)


def test_a_wrong_shape_is_refused(copied: Path) -> None:
    change(copied, lambda module: module.update({WEIGHT: module[WEIGHT][:-3]}))
    assert WEIGHT in error_of(copied)


def test_a_checkpoint_without_its_key_is_refused(copied: Path) -> None:
    torch.save({"state": {}}, copied / CHECKPOINT)
    assert "'module'" in error_of(copied)


def test_a_pickle_that_would_run_code_is_refused(copied: Path) -> None:
    torch.save({"module": {"x": error_of}}, copied / CHECKPOINT)
    assert "cannot be read" in error_of(copied)


def test_a_broken_file_is_refused(copied: Path) -> None:
    (copied / VAE / "pytorch_model.pt").write_bytes(b"no pickle")
    assert "pytorch_model.pt" in error_of(copied)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("resolution", [30, 48]),
        ("resolution", [32]),
        ("frames", 10),
        ("fps", 0),
        ("focal_length", -1),
        ("prompt", 3),
        ("rope_axes_dim", [4, 6, 8]),
        ("rope_axes_dim", [5, 5, 6]),
        ("rope_axes_dim", None),
        ("size", 3),
    ],
)
def test_what_is_wrong_in_world_json_is_named(copied: Path, field: str, value: object) -> None:
    world = json.loads((copied / "world.json").read_text())
    (copied / "world.json").write_text(json.dumps({**world, field: value}))
    assert field in error_of(copied)


def test_world_json_that_is_no_json(copied: Path) -> None:
    (copied / "world.json").write_text("[")
    assert "world.json" in error_of(copied)


def test_without_context_block(tmp_path: Path) -> None:
    model = load_model("voyager", path=write_folder(tmp_path, context=False))
    assert isinstance(model, VoyagerWorldModel)
    assert model.transformer.context is None
    assert (tmp_path / PLAIN_CHECKPOINT).exists()


def test_the_layout_of_diffusers(copied: Path, model: VoyagerWorldModel) -> None:
    shutil.rmtree(copied / "Voyager")
    shutil.rmtree(copied / "hunyuan-video-i2v-720p")
    config = {**model.transformer.config, "context_block": True}
    (copied / "transformer").mkdir()
    (copied / "transformer" / "config.json").write_text(json.dumps(config))
    weights = model.transformer.state_dict()
    half = len(weights) // 2
    for index, names in enumerate((list(weights)[:half], list(weights)[half:])):
        part = {name: weights[name].contiguous() for name in names}
        save_file(part, copied / "transformer" / f"model-{index}.safetensors")
    vae = model._codec.vae
    vae.save_pretrained(copied / "vae")
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(copied / "scheduler")
    loaded = load_model("voyager", path=copied)
    assert isinstance(loaded, VoyagerWorldModel)
    assert same(loaded.transformer.state_dict(), weights)
    assert same(loaded._codec.vae.state_dict(), vae.state_dict())
    assert loaded.sampler(4).sigmas[1] == pytest.approx(3 * 0.75 / (1 + 2 * 0.75))


def same(ours: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    return ours.keys() == others.keys() and all(torch.equal(ours[name], others[name]) for name in ours)


def test_bfloat16_halves_the_weights_and_runs(folder: Path, model: VoyagerWorldModel) -> None:
    small = load_model("voyager", path=folder, dtype="bfloat16")
    assert model.memory_bytes * 0.49 < small.memory_bytes < model.memory_bytes * 0.51
    asked = RolloutRequest(observe(), trajectory("left", FRAMES - 1), make_policy("none"), 1, 3, 6.0)
    small_run, run = (finish(Engine(), each, asked)[0] for each in (small, model))
    assert small_run.end.status == run.end.status == "succeeded"
    difference = small_run.rgb().astype(int) - run.rgb()
    assert 0 < abs(difference).mean() < 20
