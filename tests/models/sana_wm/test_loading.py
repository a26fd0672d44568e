"""Loading: every mistake is told by the name of the file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.engine.listening import finish
from tests.models.sana_wm.requests import request
from tests.models.sana_wm.tiny import CONFIGS, CPU
from worldcache.core import Conditioning
from worldcache.engine.engine import Engine
from worldcache.errors import ModelLoadError
from worldcache.models.registry import load_model, weight_bytes
from worldcache.models.sana_wm.world import SanaWMWorldModel


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.mark.parametrize(
    "name",
    [
        "model_index.json",
        "transformer/config.json",
        "vae/config.json",
        "scheduler/scheduler_config.json",
        "transformer/diffusion_pytorch_model.safetensors",
    ],
)
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(ModelLoadError, match=Path(name).name.split(".")[0]):
        load_model("sana-wm", path=copy)


def test_a_text_encoder_or_embeddings_are_needed(copy: Path) -> None:
    (copy / "text_embeds.safetensors").unlink()
    with pytest.raises(ModelLoadError, match=r"tokenizer is missing \(or text_embeds.safetensors"):
        load_model("sana-wm", path=copy)


def test_an_embedding_that_is_missing_is_named(copy: Path) -> None:
    file = copy / "text_embeds.safetensors"
    tensors = {name: tensor for name, tensor in load_file(file).items() if name != "negative_mask"}
    save_file(tensors, file)
    with pytest.raises(ModelLoadError, match="negative_mask"):
        load_model("sana-wm", path=copy)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"height": 20}, "multiples of 8"),
        ({"width": 0}, "multiples of 8"),
        ({"chunk_frames": 12}, "multiple of 8"),
        ({"chunk_frames": 0}, "multiple of 8"),
        ({"depth": 3}, "depth"),
        ([], "world.json"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(copy: Path, sizes: Any, message: str) -> None:
    good = CONFIGS["sizes"]
    (copy / "world.json").write_text(json.dumps({**good, **sizes} if sizes else sizes))
    with pytest.raises(ModelLoadError, match=message):
        load_model("sana-wm", path=copy)


def test_a_broken_file_is_no_traceback(copy: Path) -> None:
    (copy / "transformer/diffusion_pytorch_model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelLoadError, match="cannot be loaded"):
        load_model("sana-wm", path=copy)


def test_parts_that_do_not_fit_each_other_are_refused() -> None:
    wide = {**CONFIGS, "transformer": {**CONFIGS["transformer"], "in_channels": 4}}
    with pytest.raises(ValueError, match="4 channels, but the VAE makes 8"):
        SanaWMWorldModel.random(device=CPU, dtype=torch.float32, configs=wide)


def test_what_is_neither_a_folder_nor_an_id_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="neither a folder nor the id"):
        load_model("sana-wm", path=tmp_path / "nowhere")


def test_offloading_changes_nothing(folder: Path, model: SanaWMWorldModel) -> None:
    away = load_model("sana-wm", path=folder, offload=True)
    one, other = (finish(Engine(), world, request())[0].rgb() for world in (model, away))
    assert (one == other).all()


def test_a_calibration_beside_the_weights_is_read(copy: Path) -> None:
    calibration = {"auto": "fast", "policies": {"magcache": {"ratios": [1.0] * 60}}}
    (copy / "calibration.json").write_text(json.dumps(calibration))
    info = load_model("sana-wm", path=copy).info
    assert info.auto_preset == "fast" and info.calibrations["magcache"]["ratios"][0] == 1.0


def test_the_size_of_the_weights_is_known_beforehand(folder: Path, model: SanaWMWorldModel) -> None:
    assert weight_bytes("sana-wm", path=folder) >= model.memory_bytes > 0


def test_prompts_are_encoded_once_a_rollout(reader: SanaWMWorldModel) -> None:
    observation = request().observation
    assert observation is not None
    house, same, empty = (
        reader.begin(observation, Conditioning(prompt=prompt)).text for prompt in ("a house", "a house", None)
    )
    assert house.prompt.shape == (1, 300, 8) and house.mask.shape == (300,)
    assert torch.equal(house.prompt, same.prompt)
    assert not torch.equal(house.prompt, empty.prompt)
    assert torch.equal(house.negative_prompt, empty.negative_prompt)
