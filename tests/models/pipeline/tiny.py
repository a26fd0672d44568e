"""Tiny image-to-video pipelines with random weights, as ``save_pretrained`` writes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel

SIZE, STEPS = 32, 8

SHORT, FRAMES = 9, 17
"""Frames of a chunk that both pipelines can have, the second one the most."""

WORDS = ("<pad>", "<unk>", "left", "right", "dark", "bright")

WORLD = {"height": SIZE, "width": SIZE, "num_frames": FRAMES, "num_inference_steps": STEPS, "fps": 12}
"""What ``world.json`` says of both pipelines, which are made for larger videos."""


def tokenizer() -> Any:
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>")


TEXT = {"vocab_size": len(WORDS), "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}


def cogvideox() -> Any:
    """Guidance in one call of the transformer, v-prediction, a stochastic image encoder."""
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=8,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=8,
        num_layers=1,
        sample_width=SIZE // 8,
        sample_height=SIZE // 8,
        sample_frames=FRAMES,
    )
    vae = diffusers.AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2
    )
    scheduler = diffusers.CogVideoXDDIMScheduler(prediction_type="v_prediction")
    text = T5EncoderModel(T5Config(**TEXT))
    return diffusers.CogVideoXImageToVideoPipeline(tokenizer(), text, vae, transformer, scheduler)


def wan_transformer() -> Any:
    return diffusers.WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=36,
        out_channels=16,
        text_dim=8,
        freq_dim=16,
        ffn_dim=16,
        num_layers=1,
        rope_max_seq_len=32,
    )


def wan(**more: Any) -> Any:
    """Guidance in two calls of the transformer, flow matching, a scheduler that remembers steps."""
    vae = diffusers.AutoencoderKLWan(base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    text = UMT5EncoderModel(UMT5Config(**TEXT))
    return diffusers.WanImageToVideoPipeline(
        tokenizer=tokenizer(),
        text_encoder=text,
        vae=vae,
        scheduler=scheduler,
        transformer=wan_transformer(),
        **more,
    )


def two_wans() -> Any:
    """One transformer for the first steps, another one for the rest."""
    return wan(transformer_2=wan_transformer(), boundary_ratio=0.8)


def ltx() -> Any:
    """Latents as a row of tokens, a timestep for each of them."""
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=1,
        caption_channels=8,
    )
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        patch_size=1,
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    text = T5EncoderModel(T5Config(**TEXT))
    return diffusers.LTXImageToVideoPipeline(scheduler, vae, text, tokenizer(), transformer)


PIPELINES: dict[str, Callable[[], Any]] = {"cogvideox": cogvideox, "wan": wan}
"""Those that every test is run with."""

OTHERS: dict[str, Callable[[], Any]] = {"two_wans": two_wans, "ltx": ltx}


def save(name: str, folder: Path) -> Path:
    """One of the pipelines, saved with its ``world.json``."""
    torch.manual_seed(0)
    {**PIPELINES, **OTHERS}[name]().save_pretrained(folder)
    (folder / "world.json").write_text(json.dumps(WORLD))
    return folder


def picture(seed: int) -> NDArray[np.uint8]:
    """``[H, W, 3]``."""
    values = np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3))
    return values.astype(np.uint8)
