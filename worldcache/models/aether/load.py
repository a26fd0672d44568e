"""Aether's parts from folders in the published layout, or from the hub.

::

    transformer/   of AetherV1
    vae/  scheduler/  tokenizer/  text_encoder/   of CogVideoX-5b-I2V
    prompt_embeds.safetensors   optional, in place of tokenizer and text encoder

Weights are read from safetensors files only, straight into the format and onto the device they are for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel
from diffusers.schedulers.scheduling_dpm_cogvideox import CogVideoXDPMScheduler
from safetensors import SafetensorError, safe_open
from torch import Tensor

from worldcache.errors import ModelLoadError
from worldcache.models.aether.latents import CHANNELS, FOLD, PICTURE, RAYS

AETHER = "AetherWorldModel/AetherV1"
"""Where the transformer is published."""

COGVIDEOX = "THUDM/CogVideoX-5b-I2V"
"""Where everything else is."""

PROMPT = "prompt_embeds"
"""Name of the file, and of the tensor in it, that holds the encoded empty prompt."""

WEIGHTS = "diffusion_pytorch_model.safetensors"
BASE_PARTS = ("vae", "scheduler", "tokenizer", "text_encoder")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Parts:
    """What Aether consists of, loaded; ``prompt`` is ``[1, L, D]``."""

    transformer: Any
    vae: Any
    scheduler: Any
    prompt: Tensor


def load_parts(
    path: str | Path | None, *, device: torch.device, vae_device: torch.device, dtype: torch.dtype
) -> Parts:
    """Load everything.

    Args:
        path: a folder with all parts, or the hub id of a transformer like AetherV1, which is the default.
        device, vae_device: where the weights go.
        dtype: of the weights.

    Raises:
        ModelLoadError: the message names the file or the key that is missing or wrong.
    """
    own, base = _find(path)
    config = _read_config(own / "transformer", CogVideoXTransformer3DModel.__name__)
    check_transformer_config(config, str(own / "transformer" / "config.json"))
    scheduler = _load_scheduler(base / "scheduler" / "scheduler_config.json")
    prompt = _load_prompt(own, base, config)
    vae_config = _read_config(base / "vae", AutoencoderKLCogVideoX.__name__)
    vae = _load_network(AutoencoderKLCogVideoX, vae_config, base / "vae", vae_device, dtype)
    if vae.config.latent_channels != PICTURE:
        raise ModelLoadError(f"{base / 'vae' / 'config.json'}: latent_channels must be {PICTURE}")
    transformer = _load_network(CogVideoXTransformer3DModel, config, own / "transformer", device, dtype)
    return Parts(transformer, vae, scheduler, prompt)


def check_transformer_config(config: Mapping[str, Any], name: str) -> None:
    """Refuse a transformer that is none of Aether's.

    Raises:
        ModelLoadError: the message names the entry at fault.
    """
    wanted = {
        "in_channels": sum(CHANNELS) + PICTURE + FOLD * RAYS,
        "out_channels": sum(CHANNELS),
        "use_rotary_positional_embeddings": True,
        "patch_size_t": None,
        "ofs_embed_dim": None,
    }
    for key, value in wanted.items():
        if config.get(key) != value:
            raise ModelLoadError(f"{name}: {key} must be {value}, not {config.get(key)}; use AetherV1's")


def _find(path: str | Path | None) -> tuple[Path, Path]:
    """The folders with the transformer and with the rest."""
    if path is not None and Path(path).is_dir():
        return Path(path), Path(path)
    name = AETHER if path is None else str(path)
    if not HUB_ID.fullmatch(name):
        raise ModelLoadError(f"{name} is neither a folder nor a hub id such as {AETHER}")
    return _download(name, ("transformer",)), _download(COGVIDEOX, BASE_PARTS)


def _download(name: str, parts: tuple[str, ...]) -> Path:
    """The parts of a hub repository, in the hub's own cache."""
    from huggingface_hub import snapshot_download

    patterns = [f"{part}/{kind}" for part in parts for kind in ("*.json", "*.safetensors", "*.model")]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{name} is no folder here, and the hub does not give it: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError:
        raise ModelLoadError(f"{path} is missing; give a folder in the published layout") from None
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{path} cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise ModelLoadError(f"{path} holds no JSON object")
    return data


def _read_config(folder: Path, class_name: str) -> dict[str, Any]:
    """A network's configuration without its private entries, which say what class it is of."""
    config = _read_json(folder / "config.json")
    if config.get("_class_name", class_name) != class_name:
        raise ModelLoadError(f"{folder / 'config.json'} is of a {config['_class_name']}, not a {class_name}")
    return {key: value for key, value in config.items() if not key.startswith("_")}


def _load_scheduler(path: Path) -> Any:
    config = _read_json(path)
    if config.get("prediction_type") != "v_prediction":
        raise ModelLoadError(f"{path}: prediction_type must be v_prediction")
    try:
        return CogVideoXDPMScheduler.from_config(config)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ModelLoadError(f"{path} describes no scheduler: {error}") from error


def _load_network(
    network: Any, config: Mapping[str, Any], folder: Path, device: torch.device, dtype: torch.dtype
) -> Any:
    """A network made without memory of its own, whose weights are then the file's."""
    try:
        with torch.device("meta"):
            made = network.from_config(config)
    except (TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise ModelLoadError(f"{folder / 'config.json'} describes no {network.__name__}: {error}") from error
    expected = {name: tensor.shape for name, tensor in made.state_dict().items()}
    found: dict[str, Tensor] = {}
    for path, name, tensor in _read_weights(folder):
        if name not in expected:
            raise ModelLoadError(f"{path} holds {name!r}, which the model does not have")
        if tensor.shape != expected[name]:
            raise ModelLoadError(f"{path}: {name!r} must be {list(expected[name])}, not {list(tensor.shape)}")
        found[name] = tensor.to(device, dtype if tensor.is_floating_point() else None)
    if missing := sorted({*expected} - {*found}):
        raise ModelLoadError(f"{folder} lacks {missing[0]!r} and {len(missing) - 1} more of the weights")
    made.load_state_dict(found, assign=True)
    return made


def _read_weights(folder: Path) -> Iterator[tuple[Path, str, Tensor]]:
    """File, name and tensor of all weights of a folder, in one file or in several with an index."""
    files = [folder / WEIGHTS]
    if not files[0].exists():
        index = folder / f"{WEIGHTS}.index.json"
        if not index.exists():
            raise ModelLoadError(f"{files[0]} is missing, and so is {index.name}")
        shards = _read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not all(
            isinstance(shard, str) and Path(shard).name == shard for shard in shards.values()
        ):
            raise ModelLoadError(f"{index}: weight_map must give a file beside it for each weight")
        files = [folder / shard for shard in sorted({*shards.values()})]
    for path in files:
        yield from ((path, name, tensor) for name, tensor in _read_file(path))


def _read_file(path: Path) -> Iterator[tuple[str, Tensor]]:
    if not path.exists():
        raise ModelLoadError(f"{path} is missing")
    try:
        with safe_open(path, "pt") as file:
            for name in file.keys():
                yield name, file.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise ModelLoadError(f"{path} is no safetensors file: {error}") from error


def _load_prompt(own: Path, base: Path, config: Mapping[str, Any]) -> Tensor:
    """The empty prompt, encoded before or now."""
    shape = (1, config.get("max_text_seq_length", 226), config.get("text_embed_dim", 4096))
    path = next((p for p in (folder / f"{PROMPT}.safetensors" for folder in (own, base)) if p.exists()), None)
    if path is None:
        prompt, source = _encode_prompt(base, shape[1]), str(base / "text_encoder")
    else:
        tensors = dict(_read_file(path))
        if PROMPT not in tensors:
            raise ModelLoadError(f"{path} lacks {PROMPT!r}")
        prompt, source = tensors[PROMPT], str(path)
    if prompt.shape != shape:
        raise ModelLoadError(f"{source}: the prompt must be {list(shape)}, not {list(prompt.shape)}")
    return prompt


def _encode_prompt(base: Path, length: int) -> Tensor:
    """The empty prompt by the text encoder, in float32 on the host; the encoder is dropped again."""
    for part in ("tokenizer", "text_encoder"):
        if not (base / part).is_dir():
            raise ModelLoadError(f"{base / part} is missing, and so is {PROMPT}.safetensors")
    try:
        from transformers import AutoTokenizer, T5EncoderModel

        tokenizer = AutoTokenizer.from_pretrained(base / "tokenizer")
        encoder: Any = T5EncoderModel.from_pretrained(base / "text_encoder", use_safetensors=True)
    except ImportError as error:
        raise ModelLoadError(
            f"the empty prompt cannot be encoded: {error}; install transformers and sentencepiece, or put "
            f"{PROMPT}.safetensors into the folder"
        ) from error
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelLoadError(f"{base}: tokenizer or text_encoder cannot be loaded: {error}") from error
    tokens = tokenizer("", padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    with torch.no_grad():
        encoded: Tensor = encoder.float().eval()(tokens.input_ids)[0]
    return encoded
