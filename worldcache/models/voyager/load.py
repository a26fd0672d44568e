"""A model folder's parts: networks, scheduler, text and depth."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import AutoencoderKLHunyuanVideo
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from safetensors import SafetensorError, safe_open

from worldcache.core import Preset
from worldcache.errors import ModelLoadError
from worldcache.models.calibration import Calibration, read_calibration
from worldcache.models.transfer import to_device
from worldcache.models.voyager.codec import Codec
from worldcache.models.voyager.depth import DepthEstimator, load_estimator
from worldcache.models.voyager.facts import PRESETS, SHIFT, TEXT_LENGTH, TRANSFORMER, WorldFacts, read_facts
from worldcache.models.voyager.networks import load_codec, load_transformer, random_network
from worldcache.models.voyager.text import FixedText, LlavaText, TextEncoder, random_text
from worldcache.models.voyager.transformer import VoyagerTransformer3DModel

TEXT_EMBEDS = "text_embeds.safetensors"
"""May stand in for the text encoders: ``tokens`` [P, L, D], ``mask`` [P, L] and ``pooled`` [P, D2], and in
the metadata ``prompts``, a JSON list of the P texts."""


@dataclass(frozen=True)
class Parts:
    """All that a Voyager model is made of.

    Attributes:
        estimator: of the depth of observations that come without; ``None`` if there is none.
    """

    facts: WorldFacts
    transformer: VoyagerTransformer3DModel
    codec: Codec
    scheduler: FlowMatchEulerDiscreteScheduler
    text: TextEncoder
    estimator: DepthEstimator | None
    calibration: Calibration


def load_parts(folder: Path, *, device: torch.device, dtype: torch.dtype, offload: bool) -> Parts:
    """Read a folder.

    Raises:
        ModelLoadError: the message names the file or the key that is missing or wrong.
    """
    if not folder.is_dir():
        raise ModelLoadError(f"{folder} is no folder; give the path of Voyager's weights")
    facts = read_facts(folder)
    text = load_text(folder, device=device, dtype=dtype, offload=offload)
    estimator = load_estimator(folder, device=device, dtype=dtype, offload=offload)
    codec = load_codec(folder, device=device, dtype=dtype)
    transformer = load_transformer(folder, device=device, dtype=dtype, rope_axes_dim=facts.rope_axes_dim)
    try:
        calibration = read_calibration(folder, PRESETS)
    except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise ModelLoadError(f"{folder} cannot be loaded: {error}") from error
    return Parts(facts, transformer, codec, load_scheduler(folder), text, estimator, calibration)


def random_parts(
    configs: Mapping[str, Mapping[str, Any]], *, device: torch.device, dtype: torch.dtype, seed: int
) -> Parts:
    """Parts of the published size, or as ``configs`` say, with random weights made on the device."""
    facts = WorldFacts(**configs.get("world", {}))
    arguments = {**TRANSFORMER, **configs.get("transformer", {})}
    options: dict[str, Any] = {"device": device, "dtype": dtype}
    generator = torch.Generator(device).manual_seed(seed)
    transformer = random_network(
        lambda: VoyagerTransformer3DModel(**arguments), generator=generator, **options
    )
    vae = random_network(
        lambda: AutoencoderKLHunyuanVideo(**configs.get("vae", {})), generator=generator, **options
    )
    config = transformer.config
    text = random_text(
        (facts.prompt, facts.negative_prompt),
        TEXT_LENGTH,
        (config.text_embed_dim, config.pooled_projection_dim),
        torch.Generator().manual_seed(seed),
        **options,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    presets = {name: Preset(data["policy"], data.get("parameters", {})) for name, data in PRESETS.items()}
    calibration = Calibration(presets=presets)
    return Parts(facts, transformer, Codec(vae, device), scheduler, text, None, calibration)


def load_scheduler(folder: Path) -> FlowMatchEulerDiscreteScheduler:
    """The folder's scheduler, or the published one."""
    if not (folder / "scheduler").exists():
        return FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    try:
        return FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler")
    except (OSError, ValueError, TypeError) as error:
        raise ModelLoadError(f"{folder / 'scheduler'} cannot be loaded: {error}") from error


def load_text(folder: Path, *, device: torch.device, dtype: torch.dtype, offload: bool) -> TextEncoder:
    """The folder's text encoders, or what stands in for them."""
    if (folder / TEXT_EMBEDS).exists():
        return _fixed_text(folder / TEXT_EMBEDS, device, dtype)
    llava = _first(folder, "text_encoder_i2v", "text_encoder")
    clip = _first(folder, "text_encoder_2")
    tokenizer = _either(folder / "tokenizer", llava)
    tokenizer_2 = _either(folder / "tokenizer_2", clip)
    pictures = _either(folder / "image_processor", llava)
    try:
        library: Any = import_module("transformers")
        encoders = {
            "text_encoder": library.LlavaForConditionalGeneration.from_pretrained(llava, dtype=dtype),
            "tokenizer": library.AutoTokenizer.from_pretrained(tokenizer, padding_side="right"),
            "image_processor": library.CLIPImageProcessor.from_pretrained(pictures),
            "text_encoder_2": library.CLIPTextModel.from_pretrained(clip, dtype=dtype),
            "tokenizer_2": library.CLIPTokenizer.from_pretrained(tokenizer_2),
        }
        return LlavaText(encoders, device=device, dtype=dtype, offload=offload)
    except ImportError as error:
        raise ModelLoadError(f"text encoders need the package transformers: {error}") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelLoadError(f"the text encoders of {folder} cannot be loaded: {error}") from error


def _fixed_text(path: Path, device: torch.device, dtype: torch.dtype) -> FixedText:
    try:
        with safe_open(path, "pt") as file:
            prompts = json.loads((file.metadata() or {})["prompts"])
            tokens, mask, pooled = (file.get_tensor(name) for name in ("tokens", "mask", "pooled"))
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise ModelLoadError(f"{path} must hold tokens, mask, pooled and prompts: {error}") from error
    same = tokens.ndim == 3 and pooled.ndim == 2 and mask.shape == tokens.shape[:2]
    if not same or not len(prompts) == len(tokens) == len(pooled) or not mask.any(1).all():
        raise ModelLoadError(f"{path}: the shapes do not belong together, or a mask is empty")
    return FixedText(
        tuple(prompts),
        to_device(tokens.to(dtype), device),
        to_device(mask.bool(), device),
        to_device(pooled.to(dtype), device),
    )


def _first(folder: Path, *names: str) -> Path:
    for name in names:
        if (folder / name).exists():
            return folder / name
    raise ModelLoadError(f"{folder / names[0]} is missing")


def _either(path: Path, other: Path) -> Path:
    return path if path.exists() else other
