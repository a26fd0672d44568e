"""SANA-WM with tiny random weights: all that the real one does, in milliseconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import SanaWMPipeline
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing
from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedTokenizerFast

from worldcache.models.sana_wm.loading import Parts, random_parts

CPU = torch.device("cpu")
HEIGHT, WIDTH = 16, 24
TEXT_WIDTH = 8

CONFIGS: dict[str, dict[str, Any]] = {
    "transformer": {
        "in_channels": 8,
        "num_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 2,
        "linear_head_dim": 16,
        "caption_channels": TEXT_WIDTH,
        "softmax_every_n": 2,
        "mixed_precision": "no",
    },
    "vae": {
        "latent_channels": 8,
        "block_out_channels": (8, 8, 16, 16),
        "decoder_block_out_channels": (8, 16, 32),
        "layers_per_block": (1, 1, 1, 1, 1),
        "decoder_layers_per_block": (1, 1, 1, 1),
        "patch_size": 1,
        "spatial_compression_ratio": 8,
    },
    "sizes": {"height": HEIGHT, "width": WIDTH, "chunk_frames": 16},
}


def tiny_parts(seed: int = 0) -> Parts:
    parts = random_parts(device=CPU, dtype=torch.float32, seed=seed, configs=CONFIGS)
    generator = torch.Generator().manual_seed(seed)
    vae = parts.pipe.vae
    vae.latents_mean.copy_(torch.randn(8, generator=generator) / 10)
    vae.latents_std.copy_(torch.rand(8, generator=generator) + 0.5)
    return parts


def write_folder(path: Path, *, text_encoder: bool = False) -> Path:
    """Write a model as it is published: with embeddings in place of a text encoder, or with a tiny one."""
    parts = tiny_parts()
    pipe = parts.pipe
    if text_encoder:
        pipe = SanaWMPipeline(_tokenizer(), _encoder(), pipe.vae, pipe.transformer, pipe.scheduler)
    pipe.save_pretrained(path)
    if not text_encoder:
        save_file(
            {name: tensor.clone() for name, tensor in vars(parts.text).items()},
            path / "text_embeds.safetensors",
        )
    (path / "world.json").write_text(json.dumps(CONFIGS["sizes"]))
    return path


def _tokenizer() -> PreTrainedTokenizerFast:
    """A token for every printable character."""
    special = ("<pad>", "<bos>", "<unk>")
    words = [*special, "\n", *map(chr, range(32, 127))]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    pad, bos, unk = special
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pad, bos_token=bos, unk_token=unk)


def _encoder() -> Gemma2ForCausalLM:
    config = Gemma2Config(
        vocab_size=100,
        hidden_size=TEXT_WIDTH,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return Gemma2ForCausalLM(config)
