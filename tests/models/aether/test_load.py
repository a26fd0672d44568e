"""Folders in the published layout, whole and broken."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import worldcache
from tests.models.aether.tiny import CONFIGS
from worldcache.core import Observation
from worldcache.errors import ModelLoadError
from worldcache.models.aether import load
from worldcache.models.aether.world import AetherWorldModel

CPU = torch.device("cpu")
WEIGHTS = "diffusion_pytorch_model.safetensors"


def load_folder(folder: Path, **options: Any) -> AetherWorldModel:
    return AetherWorldModel.load(folder, device=CPU, dtype=torch.float32, **options)


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "model"))


def test_the_registry_loads_a_folder(folder: Path) -> None:
    model = worldcache.load_model("aether", path=folder)
    assert model.info.id == "aether"
    assert model.info.resolution == (32, 48)


def test_weights_are_the_files(folder: Path) -> None:
    model = load_folder(folder)
    for name, tensor in load_file(folder / "transformer" / WEIGHTS).items():
        assert torch.equal(model.transformer.state_dict()[name], tensor), name


def test_weights_take_the_format_asked_for(folder: Path) -> None:
    model = AetherWorldModel.load(folder, device=CPU, dtype=torch.bfloat16)
    assert {weight.dtype for weight in model.transformer.parameters()} == {torch.bfloat16}
    assert model.memory_bytes < 0.6 * load_folder(folder).memory_bytes


def test_shards_are_put_together(copied: Path) -> None:
    whole = load_file(copied / "transformer" / WEIGHTS)
    (copied / "transformer" / WEIGHTS).unlink()
    names = sorted(whole)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: whole[name] for name in part}, copied / "transformer" / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (copied / "transformer" / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    state = load_folder(copied).transformer.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in whole.items())


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def drop_weight(folder: Path) -> None:
    weights = load_file(folder / "transformer" / WEIGHTS)
    del weights["proj_out.bias"]
    save_file(weights, folder / "transformer" / WEIGHTS)


def add_weight(folder: Path) -> None:
    weights = load_file(folder / "vae" / WEIGHTS)
    save_file({**weights, "stranger": torch.zeros(1)}, folder / "vae" / WEIGHTS)


def bend_weight(folder: Path) -> None:
    weights = load_file(folder / "transformer" / WEIGHTS)
    save_file({**weights, "proj_out.bias": torch.zeros(3)}, folder / "transformer" / WEIGHTS)


def point_outside(folder: Path) -> None:
    (folder / "vae" / WEIGHTS).unlink()
    (folder / "vae" / f"{WEIGHTS}.index.json").write_text('{"weight_map": {"a": "../secret.safetensors"}}')


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no transformer": (lambda f: shutil.rmtree(f / "transformer"), "transformer/config.json"),
    "no vae": (lambda f: shutil.rmtree(f / "vae"), "vae/config.json"),
    "no scheduler": (lambda f: shutil.rmtree(f / "scheduler"), "scheduler_config.json"),
    "no weights": (lambda f: (f / "vae" / WEIGHTS).unlink(), f"vae/{WEIGHTS}"),
    "no prompt": (lambda f: (f / "prompt_embeds.safetensors").unlink(), "prompt_embeds.safetensors"),
    "other prompt": (
        lambda f: save_file({"x": torch.zeros(1)}, f / "prompt_embeds.safetensors"),
        "'prompt_embeds'",
    ),
    "short prompt": (
        lambda f: save_file({"prompt_embeds": torch.zeros(1, 2, 3)}, f / "prompt_embeds.safetensors"),
        "the prompt must be",
    ),
    "missing key": (drop_weight, "proj_out.bias"),
    "unknown key": (add_weight, "stranger"),
    "wrong shape": (bend_weight, "proj_out.bias"),
    "no json": (lambda f: (f / "vae" / "config.json").write_text("{"), "vae/config.json"),
    "no object": (lambda f: (f / "vae" / "config.json").write_text("[]"), "vae/config.json"),
    "another class": (lambda f: edit(f / "vae" / "config.json", _class_name="Wan"), "Wan"),
    "other channels": (lambda f: edit(f / "transformer" / "config.json", in_channels=32), "in_channels"),
    "nonsense": (lambda f: edit(f / "transformer" / "config.json", num_layers="many"), "transformer"),
    "other latents": (lambda f: edit(f / "vae" / "config.json", latent_channels=8), "vae"),
    "other output": (
        lambda f: edit(f / "scheduler" / "scheduler_config.json", prediction_type="epsilon"),
        "prediction_type",
    ),
    "no safetensors": (lambda f: (f / "vae" / WEIGHTS).write_bytes(b"pickle"), f"vae/{WEIGHTS}"),
    "a file elsewhere": (point_outside, "weight_map"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_wrong_is_named(case: str, copied: Path) -> None:
    spoil, named = BROKEN[case]
    spoil(copied)
    with pytest.raises(ModelLoadError) as caught:
        load_folder(copied)
    assert named in str(caught.value)


def test_a_path_that_is_nothing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="neither a folder nor a hub id"):
        load_folder(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("path", "own"), [(None, "AetherWorldModel/AetherV1"), ("somebody/aether", "somebody/aether")]
)
def test_hub_ids_are_downloaded(
    path: str | None, own: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def download(name: str, allow_patterns: list[str]) -> str:
        asked.append(name)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert AetherWorldModel.load(path, device=CPU, dtype=torch.float32).info.id == "aether"
    assert asked == [own, "THUDM/CogVideoX-5b-I2V"]


def test_a_hub_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(name: str, allow_patterns: list[str]) -> str:
        raise OSError("offline")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(ModelLoadError, match=r"somebody/aether.*offline"):
        load_folder(Path("somebody/aether"))


def write_text_encoder(path: Path) -> torch.Tensor:
    """A tiny text encoder and its tokenizer; returns the empty prompt as it encodes it."""
    transformers, tokenizers = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2}, "<unk>"))
    words.post_processor = tokenizers.processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, **names).save_pretrained(path / "tokenizer")
    width, length = (CONFIGS["transformer"][key] for key in ("text_embed_dim", "max_text_seq_length"))
    config = transformers.T5Config(vocab_size=8, d_model=width, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    encoder = transformers.T5EncoderModel(config).eval()
    encoder.save_pretrained(path / "text_encoder")
    with torch.no_grad():
        encoded: torch.Tensor = encoder(torch.tensor([[1] + [0] * (length - 1)]))[0]
    return encoded


def test_the_empty_prompt_is_encoded(copied: Path) -> None:
    (copied / "prompt_embeds.safetensors").unlink()
    expected = write_text_encoder(copied)
    torch.testing.assert_close(load_folder(copied)._prompt, expected)


def test_a_text_encoder_that_cannot_be_read_is_named(copied: Path) -> None:
    (copied / "prompt_embeds.safetensors").unlink()
    for part in ("tokenizer", "text_encoder"):
        (copied / part).mkdir()
    with pytest.raises(ModelLoadError, match=r"prompt|tokenizer"):
        load_folder(copied)


def test_an_offloaded_vae_comes_and_goes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, plain = load_folder(folder, offload=True), load_folder(folder)
    moves: list[torch.device] = []
    monkeypatch.setattr(model.vae._vae, "to", moves.append)
    observation = Observation(frames=np.zeros((1, 32, 48, 3), np.uint8))
    for one in (model, plain):
        one.condition(one.begin(observation), (None,) * 16, torch.Generator().manual_seed(0))
    assert moves == [CPU, CPU]
    assert model.memory_bytes < plain.memory_bytes


def test_random_weights_need_no_folder() -> None:
    model = AetherWorldModel.random(device=CPU, dtype=torch.bfloat16, seed=3, configs=CONFIGS)
    again = AetherWorldModel.random(device=CPU, dtype=torch.bfloat16, seed=3, configs=CONFIGS)
    for weight, same in zip(model.transformer.parameters(), again.transformer.parameters(), strict=True):
        assert weight.dtype == torch.bfloat16
        assert torch.equal(weight, same)
    model.warm()


def test_the_published_size_has_the_published_number_of_weights() -> None:
    from diffusers import CogVideoXTransformer3DModel

    from worldcache.models.aether.random_weights import PUBLISHED

    load.check_transformer_config(PUBLISHED["transformer"], "published")
    with torch.device("meta"):
        network = CogVideoXTransformer3DModel.from_config(dict(PUBLISHED["transformer"]))
    assert sum(weight.numel() for weight in network.parameters()) == pytest.approx(5.6e9, rel=0.02)
