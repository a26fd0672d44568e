"""HunyuanVideo's transformer with Voyager's context block.

Without the block it computes what diffusers' class computes. The block looks at the lower, depth part of
the whole input on its own, and what it finds is added after every other block.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from diffusers.models.transformers.transformer_hunyuan_video import (
    HunyuanVideoPatchEmbed,
    HunyuanVideoSingleTransformerBlock,
    HunyuanVideoTransformer3DModel,
    HunyuanVideoTransformerBlock,
)
from torch import Tensor, nn
from torch.nn.functional import pad

from worldcache.models.voyager.tokens import SEPARATOR_LATENTS, unpatchify


class Residuals(NamedTuple):
    """What the context block adds: to the image tokens after each double block, and to image and text
    tokens after each single block."""

    double: Tensor
    single: Tensor
    single_text: Tensor


class ContextBlock(nn.Module):
    """One double and one single block on the depth part of the input."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        heads, head = config.num_attention_heads, config.attention_head_dim
        width, patch = heads * head, (config.patch_size_t, config.patch_size, config.patch_size)
        block = {"mlp_ratio": config.mlp_ratio, "qk_norm": config.qk_norm}
        self.embedder = HunyuanVideoPatchEmbed(patch, config.in_channels, width)
        self.double_block = HunyuanVideoTransformerBlock(heads, head, **block)
        self.single_block = HunyuanVideoSingleTransformerBlock(heads, head, **block)
        self.to_double = nn.Linear(width, width)
        self.to_single = nn.Linear(width, width)

    def forward(
        self,
        depth: Tensor,
        text: Tensor,
        embedding: Tensor,
        text_mask: Tensor,
        rope: tuple[Tensor, Tensor],
        length: int,
    ) -> Residuals:
        """What is found in ``depth``, aligned to the end of a sequence of ``length`` image tokens."""
        image = self.embedder(depth)
        mask = joint_mask(text_mask, image.shape[1])
        image, text = self.double_block(image, text, embedding, mask, rope)
        double = self.to_double(image)
        image, text = self.single_block(image, text, embedding, mask, rope)
        before = (0, 0, length - image.shape[1], 0)
        return Residuals(pad(double, before), pad(self.to_single(image), before), self.to_single(text))


class VoyagerTransformer3DModel(HunyuanVideoTransformer3DModel):  # type: ignore[misc]
    """Voyager's denoiser: RGB above depth in one latent.

    Args:
        context_block: whether it has one.
        config: arguments of diffusers' class.
    """

    def __init__(self, *, context_block: bool = False, **config: Any) -> None:
        super().__init__(**config)
        self.context = ContextBlock(self.config) if context_block else None

    def forward(
        self, latents: Tensor, timestep: Tensor, text: Tensor, text_mask: Tensor, pooled: Tensor
    ) -> Tensor:
        """The velocity of each row.

        Args:
            latents: ``[B, in_channels, T, h, w]``, the condition's channels included.
            timestep: ``[B]``, 0 to 1000.
            text: ``[B, L, text_embed_dim]``.
            text_mask: bool ``[B, L]``; what is False is never looked at.
            pooled: ``[B, pooled_projection_dim]``.

        Returns:
            ``[B, out_channels, T, h, w]``.
        """
        embedding, _ = self.time_text_embed(timestep, pooled, None)
        text = self.context_embedder(text, timestep, text_mask)
        image = self.x_embedder(latents)
        mask, rope = joint_mask(text_mask, image.shape[1]), self.rope(latents)
        found = None
        if self.context is not None:
            rows = (latents.shape[-2] - SEPARATOR_LATENTS) // 2
            depth = latents[..., -rows:, :]
            found = self.context(depth, text, embedding, text_mask, self.rope(depth), image.shape[1])
        for block in self.transformer_blocks:
            image, text = block(image, text, embedding, mask, rope)
            if found is not None:
                image = image + found.double
        for block in self.single_transformer_blocks:
            image, text = block(image, text, embedding, mask, rope)
            if found is not None:
                image, text = image + found.single, text + found.single_text
        patches = self.proj_out(self.norm_out(image, embedding))
        size = self.config.patch_size
        frames, rows, columns = latents.shape[2], latents.shape[3] // size, latents.shape[4] // size
        return unpatchify(patches.unflatten(1, (frames, rows, columns)), size)


def joint_mask(text_mask: Tensor, image_tokens: int) -> Tensor:
    """Which tokens of image and text may be looked at: bool ``[B, 1, 1, image_tokens + L]``."""
    return torch.cat([text_mask.new_ones(len(text_mask), image_tokens), text_mask], 1)[:, None, None]
