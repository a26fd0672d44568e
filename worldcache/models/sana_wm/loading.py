"""The parts of the model: from a folder or the hub in the published layout, or with random weights.

Beside the published files a folder may hold ``world.json`` (the fields of :class:`Sizes`, for weights of
another size), ``calibration.json`` and, in place of ``tokenizer`` and ``text_encoder``,
``text_embeds.safetensors``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLLTX2Video,
    FlowMatchEulerDiscreteScheduler,
    SanaWMPipeline,
    SanaWMTransformer3DModel,
)
from diffusers.pipelines.sana_wm.cam_utils import TARGET_HEIGHT, TARGET_WIDTH
from safetensors import SafetensorError
from safetensors.torch import load_file

from worldcache.errors import ModelLoadError
from worldcache.models.calibration import Calibration, read_calibration
from worldcache.models.sana_wm.presets import PRESETS
from worldcache.models.sana_wm.text import FILE as TEXT_EMBEDS
from worldcache.models.sana_wm.text import Text, text_from_tensors

HUB_ID = "Efficient-Large-Model/SANA-WM_bidirectional-diffusers"
"""The published weights."""

WORLD = "world.json"
TEXT_PARTS = ("tokenizer", "text_encoder")
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")

VAE_STRIDES = {"spatial_compression_ratio": 32, "temporal_compression_ratio": 8}
"""Of the published VAE; its class would make others of its defaults."""

SHIFT = 8.0
"""Of the noise levels; a random model's scheduler has it."""

TEXT_TOKENS = 300
"""Tokens of a prompt, padding included."""


@dataclass(frozen=True)
class Sizes:
    """What the weights were trained at.

    Attributes:
        height, width: of a frame in pixels.
        chunk_frames: most frames that one chunk generates after its first, which it is given.
    """

    height: int = TARGET_HEIGHT
    width: int = TARGET_WIDTH
    chunk_frames: int = 160


@dataclass(frozen=True)
class Parts:
    """Everything a model is made of.

    Attributes:
        pipe: a ``SanaWMPipeline`` with transformer, VAE and scheduler, and with tokenizer and text encoder
            unless there is ``text``.
        text: embeddings that stand in for a text encoder.
    """

    pipe: Any
    sizes: Sizes
    calibration: Calibration
    text: Text | None = None

    def __post_init__(self) -> None:
        """Raises: ValueError: the parts do not fit each other."""
        vae, transformer = self.pipe.vae, self.pipe.transformer
        space, time = vae.spatial_compression_ratio, vae.temporal_compression_ratio
        if (
            self.sizes.height % space
            or self.sizes.width % space
            or min(self.sizes.height, self.sizes.width) < 1
        ):
            raise ValueError(f"height and width must be multiples of {space}, the VAE's stride")
        if self.sizes.chunk_frames < 1 or self.sizes.chunk_frames % time:
            raise ValueError(f"chunk_frames must be a multiple of {time}, the VAE's stride in time")
        if transformer.config.in_channels != vae.config.latent_channels:
            raise ValueError(
                f"the transformer takes {transformer.config.in_channels} channels, but the VAE makes "
                f"{vae.config.latent_channels}"
            )
        if transformer.config.chunk_plucker_channels != 6 * time:
            raise ValueError(f"the transformer's chunk_plucker_channels must be 6 x {time}, the VAE's stride")


def load_parts(path: str | Path | None, *, device: torch.device, dtype: torch.dtype) -> Parts:
    """Load a folder, or a repository of the hub; the published one if ``path`` is ``None``.

    Raises:
        ModelLoadError: the message names what is missing or wrong.
    """
    source = HUB_ID if path is None else str(path)
    folder = Path(source) if Path(source).is_dir() else None
    if folder is not None:
        _check_folder(folder)
    elif HUB_NAME.fullmatch(source) is None:
        raise ModelLoadError(f"{source} is neither a folder nor the id of a repository of the hub")
    try:
        return _read(source, folder, device, dtype)
    except (
        OSError,
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
        ImportError,
        RuntimeError,
        SafetensorError,
    ) as error:
        raise ModelLoadError(f"{source} cannot be loaded: {error}") from error


def random_parts(
    *,
    device: torch.device,
    dtype: torch.dtype,
    seed: int = 0,
    configs: Mapping[str, Mapping[str, Any]] | None = None,
) -> Parts:
    """Parts of the published sizes with random weights, and no text encoder.

    Args:
        seed: of the weights; torch's own generator is left as it was.
        configs: what is different: arguments of ``transformer``, ``vae``, ``scheduler`` and ``sizes``.

    Raises:
        ValueError: the parts do not fit each other.
    """
    given = configs or {}
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.device(device):
        torch.manual_seed(seed)
        transformer = SanaWMTransformer3DModel(**given.get("transformer", {}))
        vae = AutoencoderKLLTX2Video(**{**VAE_STRIDES, **given.get("vae", {})})
        for parameter in transformer.parameters():
            if not parameter.any():  # made as zeros, for training to begin with: cameras would change nothing
                torch.nn.init.normal_(parameter, std=0.02)
        shape = (1, TEXT_TOKENS, transformer.config.caption_channels)
        mask = (torch.arange(TEXT_TOKENS) < TEXT_TOKENS // 2).long()
        text = Text(torch.randn(shape).to(dtype), mask, torch.randn(shape).to(dtype), mask)
    scheduler = FlowMatchEulerDiscreteScheduler(**{"shift": SHIFT, **given.get("scheduler", {})})
    for module in (vae, transformer) if dtype != torch.float32 else ():
        module.to(dtype)
    pipe = SanaWMPipeline(None, None, vae, transformer, scheduler)
    return Parts(pipe, Sizes(**given.get("sizes", {})), Calibration(presets=PRESETS), text)


def _check_folder(folder: Path) -> None:
    """Raises: ModelLoadError: a file of the layout is missing."""
    text = () if (folder / TEXT_EMBEDS).is_file() else TEXT_PARTS
    needed = ["model_index.json", "transformer/config.json", "vae/config.json"]
    needed += ["scheduler/scheduler_config.json", *text]
    for name in needed:
        if not (folder / name).exists():
            instead = f" (or {TEXT_EMBEDS} in its place)" if name in TEXT_PARTS else ""
            raise ModelLoadError(f"{folder / name} is missing{instead}")


def _read(source: str, folder: Path | None, device: torch.device, dtype: torch.dtype) -> Parts:
    text, sizes, calibration = None, Sizes(), Calibration(presets=PRESETS)
    if folder is not None:
        calibration = read_calibration(folder, _plain_presets())
        if (folder / WORLD).exists():
            sizes = _read_sizes(folder / WORLD)
        if (folder / TEXT_EMBEDS).exists():
            text = text_from_tensors(load_file(folder / TEXT_EMBEDS), device=device, dtype=dtype)
    without = dict.fromkeys(TEXT_PARTS) if text is not None else {}
    pipe = SanaWMPipeline.from_pretrained(source, dtype=dtype, low_cpu_mem_usage=False, **without)
    return Parts(pipe, sizes, calibration, text)


def _read_sizes(path: Path) -> Sizes:
    """Raises: ValueError: the file is not what :class:`Sizes` has, in whole numbers."""
    data = json.loads(path.read_text())
    known = {field.name for field in fields(Sizes)}
    if not isinstance(data, dict) or any(type(value) is not int for value in data.values()):
        raise ValueError(f"{path.name} holds an object with whole numbers for {', '.join(sorted(known))}")
    if unknown := sorted({*data} - known):
        raise ValueError(f"{path.name}: there is no {', '.join(unknown)}, only {', '.join(sorted(known))}")
    return Sizes(**data)


def _plain_presets() -> dict[str, Any]:
    return {
        name: {"policy": preset.policy, "parameters": dict(preset.parameters)}
        for name, preset in PRESETS.items()
    }
