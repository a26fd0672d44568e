"""Aether of the published size, or of any other, with random weights made where they are needed."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel
from diffusers.schedulers.scheduling_dpm_cogvideox import CogVideoXDPMScheduler
from torch import nn

from worldcache.models.aether.load import Parts

SPREAD = 0.02
"""Standard deviation of random weights."""

PUBLISHED: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "transformer": {
            "num_attention_heads": 48,
            "attention_head_dim": 64,
            "in_channels": 96,
            "out_channels": 56,
            "time_embed_dim": 512,
            "text_embed_dim": 4096,
            "num_layers": 42,
            "sample_width": 90,
            "sample_height": 60,
            "sample_frames": 49,
            "use_rotary_positional_embeddings": True,
            "use_learned_positional_embeddings": True,
        },
        "vae": {
            "block_out_channels": [128, 256, 256, 512],
            "latent_channels": 16,
            "layers_per_block": 3,
            "norm_num_groups": 32,
            "sample_height": 480,
            "sample_width": 720,
            "scaling_factor": 0.7,
        },
        "scheduler": {
            "beta_schedule": "scaled_linear",
            "clip_sample": False,
            "prediction_type": "v_prediction",
            "rescale_betas_zero_snr": True,
            "snr_shift_scale": 1.0,
            "timestep_spacing": "trailing",
        },
    }
)
"""Sizes as published for CogVideoX-5b-I2V, with Aether's channels."""


def random_parts(
    configs: Mapping[str, Mapping[str, Any]], *, device: torch.device, dtype: torch.dtype, seed: int
) -> Parts:
    """Everything that ``load_parts`` gives, random.

    Args:
        configs: configurations in place of the published ones, by part.
        device, dtype: of the weights.
        seed: of the weights; the same on the same device only.
    """
    chosen = {**PUBLISHED, **configs}
    generator = torch.Generator(device).manual_seed(seed)
    transformer = _random(CogVideoXTransformer3DModel, chosen["transformer"], device, dtype, generator)
    vae = _random(AutoencoderKLCogVideoX, chosen["vae"], device, dtype, generator)
    scheduler = CogVideoXDPMScheduler.from_config(dict(chosen["scheduler"]))
    shape = (1, transformer.config.max_text_seq_length, transformer.config.text_embed_dim)
    prompt = torch.randn(shape, generator=generator, device=device)
    return Parts(transformer, vae, scheduler, prompt)


def _random(
    network: Any,
    config: Mapping[str, Any],
    device: torch.device,
    dtype: torch.dtype,
    generator: torch.Generator,
) -> Any:
    """A network whose memory is first allocated in its final format and place."""
    with torch.device("meta"):
        made: nn.Module = network.from_config(dict(config))
    made = made.to(dtype).to_empty(device=device)
    with torch.no_grad():
        for name, weight in (*made.named_parameters(), *made.named_buffers()):
            if weight.ndim > 1:
                weight.normal_(std=SPREAD, generator=generator)
            else:
                weight.fill_(float(name.endswith("weight")))
    return made
