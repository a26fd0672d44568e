"""Aether with tiny weights, in a folder of the published layout: all that the real one does, on a CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXDPMScheduler, CogVideoXTransformer3DModel
from safetensors.torch import save_file
from torch import Tensor

CONFIGS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "transformer": {
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "in_channels": 96,
            "out_channels": 56,
            "time_embed_dim": 16,
            "text_embed_dim": 24,
            "num_layers": 1,
            "sample_width": 6,
            "sample_height": 4,
            "sample_frames": 17,
            "max_text_seq_length": 8,
            "use_rotary_positional_embeddings": True,
            "use_learned_positional_embeddings": False,
        },
        "vae": {
            "block_out_channels": [8, 8, 8, 8],
            "latent_channels": 16,
            "layers_per_block": 1,
            "norm_num_groups": 2,
            "sample_height": 32,
            "sample_width": 48,
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
"""Frames of 32x48 pixels."""


def write_folder(
    path: Path,
    *,
    configs: Mapping[str, Mapping[str, Any]] = CONFIGS,
    weights: Mapping[str, Tensor] | None = None,
    prompt: Tensor | None = None,
    seed: int = 0,
) -> Path:
    """Write ``transformer/``, ``vae/``, ``scheduler/`` and ``prompt_embeds.safetensors``.

    Args:
        path: of the folder.
        configs: of the three parts.
        weights: by ``transformer.NAME`` and ``vae.NAME``; random ones if left out.
        prompt: the encoded empty prompt; random if left out.
        seed: of what is random.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        networks = {
            "transformer": CogVideoXTransformer3DModel(**configs["transformer"]),
            "vae": AutoencoderKLCogVideoX(**configs["vae"]),
        }
        if prompt is None:
            config = networks["transformer"].config
            prompt = torch.randn(1, config.max_text_seq_length, config.text_embed_dim)
    for name, network in networks.items():
        if weights is not None:
            own = {
                key.removeprefix(f"{name}."): w for key, w in weights.items() if key.startswith(f"{name}.")
            }
            network.load_state_dict(own)
        network.save_pretrained(path / name)
    CogVideoXDPMScheduler(**configs["scheduler"]).save_pretrained(path / "scheduler")
    save_file({"prompt_embeds": prompt.contiguous()}, path / "prompt_embeds.safetensors")
    return path
