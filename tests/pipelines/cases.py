"""Tiny random transformers of diffusers, each with its scheduler and the way its pipeline calls it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from diffusers.models.transformers.transformer_sana_wm import SanaWMTransformer3DModel
from torch import Tensor, nn

TEXT = 4


@dataclass(frozen=True)
class Case:
    """A transformer and its denoise loop.

    Attributes:
        build: makes the transformer.
        scheduler: makes its scheduler.
        call: calls the transformer with a latent ``[1, ...]`` and a timestep ``[1]``.
        shape: of the latent.
        axes, patch: layout of the output, and the pixels of a token.
    """

    build: Callable[[], nn.Module]
    scheduler: Callable[[], Any]
    call: Callable[[nn.Module, Tensor, Tensor], Any]
    shape: tuple[int, ...]
    axes: str
    patch: tuple[int, int, int] = (1, 1, 1)

    def make(self, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        return self.build().eval()


def fixed(*shape: int) -> Tensor:
    """Conditions, the same at every call."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def flow() -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)


def cogvideox() -> nn.Module:
    return diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=8,
        num_layers=1,
        sample_width=4,
        sample_height=4,
        sample_frames=9,
        max_text_seq_length=TEXT,
    )


def hunyuan_video() -> nn.Module:
    return diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        text_embed_dim=8,
        pooled_projection_dim=8,
        rope_axes_dim=(2, 2, 4),
    )


def wan(in_channels: int = 4) -> nn.Module:
    return diffusers.WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=in_channels,
        out_channels=4,
        text_dim=8,
        freq_dim=16,
        ffn_dim=16,
        num_layers=1,
        rope_max_seq_len=32,
    )


def ltx() -> nn.Module:
    return diffusers.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=1,
        caption_channels=8,
    )


def cosmos() -> nn.Module:
    return diffusers.CosmosTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=1,
        mlp_ratio=2,
        text_embed_dim=8,
        adaln_lora_dim=4,
        max_size=(4, 8, 8),
        concat_padding_mask=False,
    )


def mochi() -> nn.Module:
    return diffusers.MochiTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=8,
        in_channels=4,
        text_embed_dim=8,
        time_embed_dim=4,
    )


def sana_wm() -> nn.Module:
    return SanaWMTransformer3DModel(
        in_channels=4,
        num_layers=2,
        hidden_size=32,
        num_attention_heads=2,
        linear_head_dim=16,
        use_chunk_plucker_post_attn=False,
        chunk_plucker_post_attn_blocks=0,
        caption_channels=8,
        softmax_every_n=2,
        mixed_precision="no",
    )


def flux() -> nn.Module:
    return diffusers.FluxTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        axes_dims_rope=(4, 4, 8),
    )


def sd3() -> nn.Module:
    return diffusers.SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=8,
        caption_projection_dim=16,
        pooled_projection_dim=8,
        out_channels=4,
    )


def pixart() -> nn.Module:
    return diffusers.PixArtTransformer2DModel(
        sample_size=8,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=8,
        cross_attention_dim=16,
        use_additional_conditions=False,
    )


def z_image() -> nn.Module:
    return diffusers.ZImageTransformer2DModel(
        all_patch_size=(2,),
        all_f_patch_size=(1,),
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=8,
        axes_dims=[4, 4, 8],
        axes_lens=[64, 32, 32],
    )


VIDEO = (1, 4, 3, 8, 8)

CASES = {
    "CogVideoX": Case(
        cogvideox,
        diffusers.CogVideoXDDIMScheduler,
        lambda model, x, t: model(x, fixed(1, TEXT, 8), t),
        (1, 3, 4, 8, 8),
        "BTCHW",
        (1, 2, 2),
    ),
    "HunyuanVideo": Case(
        hunyuan_video,
        flow,
        lambda model, x, t: model(
            hidden_states=x,
            timestep=t,
            encoder_hidden_states=fixed(1, TEXT, 8),
            encoder_attention_mask=torch.ones(1, TEXT),
            pooled_projections=fixed(1, 8),
            guidance=torch.tensor([6000.0]),
        ),
        VIDEO,
        "BCTHW",
        (1, 2, 2),
    ),
    "Wan": Case(
        wan,
        lambda: diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
        lambda model, x, t: model(x, t, fixed(1, TEXT, 8)),
        VIDEO,
        "BCTHW",
        (1, 2, 2),
    ),
    "LTX": Case(
        ltx,
        flow,
        lambda model, x, t: model(
            x, fixed(1, TEXT, 8), t, torch.ones(1, TEXT).bool(), num_frames=3, height=4, width=4
        ),
        (1, 48, 8),
        "BNC",
    ),
    "Cosmos": Case(
        cosmos,
        flow,
        lambda model, x, t: model(
            hidden_states=x, timestep=t / 1000, encoder_hidden_states=fixed(1, TEXT, 8)
        ),
        VIDEO,
        "BCTHW",
        (1, 2, 2),
    ),
    "Mochi": Case(
        mochi,
        lambda: diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
        lambda model, x, t: model(x, fixed(1, TEXT, 8), t, torch.ones(1, TEXT).bool()),
        VIDEO,
        "BCTHW",
        (1, 2, 2),
    ),
    "SanaWM": Case(
        sana_wm,
        flow,
        lambda model, x, t: model(
            x, t.expand(1, 1, 3).clone(), fixed(1, 1, TEXT, 8), mask=torch.ones(1, TEXT)
        ),
        (1, 4, 3, 4, 4),
        "BCTHW",
    ),
    "Flux": Case(
        flux,
        flow,
        lambda model, x, t: model(
            x, fixed(1, TEXT, 8), fixed(1, 8), t / 1000, torch.zeros(16, 3), torch.zeros(TEXT, 3)
        ),
        (1, 16, 4),
        "BNC",
    ),
    "SD3": Case(
        sd3,
        flow,
        lambda model, x, t: model(x, fixed(1, TEXT, 8), fixed(1, 8), t),
        (1, 4, 8, 8),
        "BCHW",
        (1, 2, 2),
    ),
    "PixArt": Case(
        pixart,
        diffusers.DPMSolverMultistepScheduler,
        lambda model, x, t: model(
            x,
            fixed(1, TEXT, 8),
            t.clone(),
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        ),
        (1, 4, 8, 8),
        "BCHW",
        (1, 2, 2),
    ),
    "ZImage": Case(
        z_image,
        flow,
        lambda model, x, t: model([x[0]], t / 1000, [fixed(TEXT, 8)]),
        (1, 4, 1, 8, 8),
        "CTHW",
    ),
}

STEPS = 10


def sample_of(output: Any) -> Tensor:
    """The model's prediction, without a learned variance and with a batch axis."""
    sample = output.sample if hasattr(output, "sample") else output[0]
    if isinstance(sample, list):
        return torch.stack(sample)
    return sample


def denoise(
    case: Case, model: nn.Module, answer: Callable[[int, Tensor, Tensor], Any], scheduler: Any
) -> Iterator[Tensor]:
    """The latent after each step; ``answer(index, latent, timestep)`` gives the transformer's output."""
    scheduler.set_timesteps(STEPS)
    latent = torch.randn(case.shape, generator=torch.Generator().manual_seed(2))
    for index, t in enumerate(scheduler.timesteps):
        with torch.no_grad():
            sample = sample_of(answer(index, latent, t.expand(1)))
        if sample.ndim == 4 and sample.shape[1] == 2 * latent.shape[1]:
            sample = sample.chunk(2, dim=1)[0]
        latent = scheduler.step(sample, t, latent, return_dict=False)[0]
        yield latent


def run(case: Case, model: nn.Module, scheduler: Any | None = None) -> Tensor:
    """The latents of all steps, ``[steps, ...]``, the model called as its pipeline does."""
    scheduler = case.scheduler() if scheduler is None else scheduler
    steps = denoise(case, model, lambda index, x, t: case.call(model, x, t), scheduler)
    return torch.stack(list(steps))
