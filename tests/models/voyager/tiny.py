"""A tiny Voyager in the published layout, with the published names of files and keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from tests.models.voyager.golden import OURS, read
from worldcache.core import Observation
from worldcache.models.voyager.facts import WorldFacts

CHECKPOINT = "Voyager/transformers/mp_rank_00_model_states_context.pt"
PLAIN_CHECKPOINT = "Voyager/transformers/mp_rank_00_model_states.pt"
VAE = "hunyuan-video-i2v-720p/vae"
TEXT = "text_embeds.safetensors"

SIZE = (32, 48)
FRAMES = 9
LENGTH = 12

PROMPTS = (WorldFacts.prompt, WorldFacts.negative_prompt, "a corridor", "a garden at night")

VAE_CONFIG: dict[str, Any] = {
    "_class_name": "AutoencoderKLCausal3D",
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 16,
    "block_out_channels": [8, 8, 16, 16],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "act_fn": "silu",
    "scaling_factor": 0.476986,
    "spatial_compression_ratio": 8,
    "time_compression_ratio": 4,
    "mid_block_add_attention": True,
    "sample_size": 32,
    "sample_tsize": 64,
}


def write_folder(path: Path, *, context: bool = True, golden: Path = OURS) -> Path:
    """Write a model, and return its folder.

    Args:
        context: whether its transformer has the context block.
        golden: folder of the weights.
    """
    name = "context" if context else "plain"
    weights, _ = read(f"voyager_{name}_weights", path=golden)
    checkpoint = path / (CHECKPOINT if context else PLAIN_CHECKPOINT)
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"module": weights}, checkpoint)
    vae, _ = read("voyager_vae", path=golden)
    (path / VAE).mkdir(parents=True, exist_ok=True)
    (path / VAE / "config.json").write_text(json.dumps(VAE_CONFIG))
    state = {f"vae.{key[2:]}": value for key, value in vae.items() if key.startswith("w.")}
    torch.save({"state_dict": state}, path / VAE / "pytorch_model.pt")
    world = {"resolution": list(SIZE), "frames": FRAMES, "rope_axes_dim": [4, 6, 6]}
    (path / "world.json").write_text(json.dumps(world))
    write_text(path / TEXT)
    return path


def write_text(path: Path, prompts: tuple[str, ...] = PROMPTS) -> None:
    """Random embeddings of the prompts, of which different numbers of places count."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.tensor([LENGTH - index for index in range(len(prompts))])
    tensors = {
        "tokens": torch.randn(len(prompts), LENGTH, 24, generator=generator),
        "mask": (torch.arange(LENGTH) < lengths[:, None]).to(torch.uint8),
        "pooled": torch.randn(len(prompts), 12, generator=generator),
    }
    save_file(tensors, path, {"prompts": json.dumps(prompts)})


def observe(seed: int = 0) -> Observation:
    """A random image with smooth depth."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    depth = 3 + np.sin(rows / 5 + seed) + np.cos(columns / 7)
    image = rng.integers(0, 256, (1, *SIZE, 3), dtype=np.uint8)
    return Observation(frames=image, depth=depth[None].astype(np.float32))
