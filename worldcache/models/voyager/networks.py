"""The networks of a folder: published pickles, or folders as diffusers writes them; or random ones."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import AutoencoderKLHunyuanVideo
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from worldcache.errors import ModelLoadError
from worldcache.models.voyager.codec import Codec
from worldcache.models.voyager.keys import to_diffusers, transformer_config
from worldcache.models.voyager.transformer import VoyagerTransformer3DModel

NetworkT = TypeVar("NetworkT", bound=nn.Module)

CHECKPOINTS = (
    "Voyager/transformers/mp_rank_00_model_states_context.pt",
    "Voyager/transformers/mp_rank_00_model_states.pt",
)
"""Published weights; the first of them that is there is taken."""

VAES = ("hunyuan-video-i2v-720p/vae", "vae")
VAE_WEIGHTS = "pytorch_model.pt"
_VAE_NAMES = {
    "in_channels": "in_channels",
    "out_channels": "out_channels",
    "latent_channels": "latent_channels",
    "block_out_channels": "block_out_channels",
    "layers_per_block": "layers_per_block",
    "act_fn": "act_fn",
    "norm_num_groups": "norm_num_groups",
    "scaling_factor": "scaling_factor",
    "spatial_compression_ratio": "spatial_compression_ratio",
    "time_compression_ratio": "temporal_compression_ratio",
    "mid_block_add_attention": "mid_block_add_attention",
}
"""What the published VAE's config says, and diffusers' names for it."""
_TILE_NAMES = {"tile": "sample_size", "tile_frames": "sample_tsize"}


def load_transformer(
    folder: Path, *, device: torch.device, dtype: torch.dtype, rope_axes_dim: tuple[int, ...] | None
) -> VoyagerTransformer3DModel:
    """The denoiser of a folder.

    Raises:
        ModelLoadError: the message names the file or the key that is missing or wrong.
    """
    for name in CHECKPOINTS:
        if (folder / name).exists():
            return _published_transformer(folder / name, device, dtype, rope_axes_dim)
    stock = folder / "transformer"
    if not (stock / "config.json").exists():
        raise ModelLoadError(f"{folder / CHECKPOINTS[0]} is missing, and so is {stock / 'config.json'}")
    config = {k: v for k, v in _json(stock / "config.json").items() if not k.startswith("_")}
    weights: dict[str, Tensor] = {}
    for path in sorted(stock.glob("*.safetensors")):
        weights.update(_safetensors(path))
    if not weights:
        raise ModelLoadError(f"{stock} has no .safetensors")
    return _fill(lambda: VoyagerTransformer3DModel(**config), weights, stock, device, dtype)


def load_codec(folder: Path, *, device: torch.device, dtype: torch.dtype) -> Codec:
    """The VAE of a folder; errors as of :func:`load_transformer`."""
    for name in VAES:
        if (folder / name / "config.json").exists():
            return _codec(folder / name, device, dtype)
    raise ModelLoadError(f"{folder / VAES[0] / 'config.json'} is missing")


def random_network(
    make: Callable[[], NetworkT], *, device: torch.device, dtype: torch.dtype, generator: torch.Generator
) -> NetworkT:
    """A network with small random weights, made where they will be.

    Args:
        make: makes it.
        generator: of ``device``.
    """
    with torch.device("meta"):
        network = make().to(dtype)
    network = network.to_empty(device=device)
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.02, generator=generator)
        else:
            nn.init.constant_(parameter, 0.0 if name.endswith("bias") else 1.0)
    return network


def _published_transformer(
    path: Path, device: torch.device, dtype: torch.dtype, rope_axes_dim: tuple[int, ...] | None
) -> VoyagerTransformer3DModel:
    data = _pickle(path)
    if not isinstance(data, Mapping) or not isinstance(data.get("module"), Mapping):
        raise ModelLoadError(f"{path} has no key 'module'")
    try:
        config = transformer_config(data["module"], rope_axes_dim)
        weights = to_diffusers(data["module"], config)
    except ModelLoadError as error:
        raise ModelLoadError(f"{path}: {error}") from error
    return _fill(lambda: VoyagerTransformer3DModel(**config), weights, path, device, dtype)


def _codec(folder: Path, device: torch.device, dtype: torch.dtype) -> Codec:
    said = _json(folder / "config.json")
    names = {**{name: name for name in _VAE_NAMES.values()}, **_VAE_NAMES}
    config = {names[key]: value for key, value in said.items() if key in names}
    files = sorted(folder.glob("*.safetensors"))
    weights: dict[str, Tensor] = {}
    for path in files:
        weights.update(_safetensors(path))
    if not files:
        data = _pickle(folder / VAE_WEIGHTS)
        data = data.get("state_dict", data) if isinstance(data, Mapping) else {}
        weights = {key.removeprefix("vae."): value for key, value in data.items()}
    tiles = {name: int(said[key]) for name, key in _TILE_NAMES.items() if key in said}
    vae = _fill(lambda: AutoencoderKLHunyuanVideo(**config), weights, folder, device, dtype)
    return Codec(vae, device, **tiles)


def _fill(
    make: Callable[[], NetworkT],
    weights: Mapping[str, Tensor],
    source: Path,
    device: torch.device,
    dtype: torch.dtype,
) -> NetworkT:
    """A network with exactly these weights, put on the device one by one."""
    try:
        with torch.device("meta"):
            network = make()
        placed = {name: value.to(device, dtype, copy=True) for name, value in weights.items()}
        network.load_state_dict(placed, strict=True, assign=True)
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise ModelLoadError(f"{source} does not fit: {error}") from error
    return network


def _pickle(path: Path) -> Any:
    if not path.exists():
        raise ModelLoadError(f"{path} is missing")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise ModelLoadError(f"{path} cannot be read: {error}") from error


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelLoadError(f"{path} cannot be read: {error}") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{path} cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise ModelLoadError(f"{path} must hold an object")
    return data
