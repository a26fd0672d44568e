"""The action-conditioned RGB-D diffusion transformer, as a diffusers model.

The network predicts clean frames (x̂0) inside and returns flow-matching velocity outside, so that
any diffusers flow-matching scheduler can drive it. It holds weights and nothing else: every row
of a batch brings its own timestep, context and actions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention import FeedForward
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from torch import Tensor, nn

NUM_TRAIN_TIMESTEPS = 1000
"""Timesteps are ``1000 * sigma``, the convention of diffusers' flow-matching schedulers."""


@dataclass
class ActionTransformerOutput(BaseOutput):  # type: ignore[misc]
    """Velocity ``[B, C, T, H, W]``."""

    sample: Tensor


class SelfAttention(nn.Module):
    """Multi-head self-attention with normalised queries and keys, ``[B, N, W] -> [B, N, W]``."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(width, 3 * width, bias=False)
        self.norm_q = nn.RMSNorm(width // heads)
        self.norm_k = nn.RMSNorm(width // heads)
        self.to_out = nn.Linear(width, width)

    def forward(self, hidden_states: Tensor) -> Tensor:
        batch, tokens, width = hidden_states.shape
        qkv = self.to_qkv(hidden_states).view(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        out = F.scaled_dot_product_attention(self.norm_q(q), self.norm_k(k), v)
        mixed: Tensor = self.to_out(out.transpose(1, 2).reshape(batch, tokens, width))
        return mixed


class ActionTransformerBlock(nn.Module):
    """A transformer block modulated per time group by timestep and actions (adaLN-Zero).

    ``hidden_states`` is ``[B, G*M, W]``: ``G`` time groups of ``M`` tokens; ``temb`` is
    ``[B, G, W]``.
    """

    def __init__(self, width: int, heads: int, ff_mult: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False)
        self.attn = SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False)
        self.ff = FeedForward(width, mult=ff_mult, activation_fn="gelu-approximate")
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, hidden_states: Tensor, temb: Tensor) -> Tensor:
        batch, tokens, width = hidden_states.shape
        groups = temb.shape[1]
        shift1, scale1, gate1, shift2, scale2, gate2 = self._parts(temb)

        def grouped(x: Tensor) -> Tensor:
            return x.view(batch, groups, tokens // groups, width)

        x = torch.addcmul(shift1, grouped(self.norm1(hidden_states)), 1 + scale1)
        x = self.attn(x.view(batch, tokens, width))
        hidden_states = torch.addcmul(grouped(hidden_states), gate1, grouped(x)).view_as(hidden_states)
        x = torch.addcmul(shift2, grouped(self.norm2(hidden_states)), 1 + scale2)
        x = self.ff(x.view(batch, tokens, width))
        return torch.addcmul(grouped(hidden_states), gate2, grouped(x)).view_as(hidden_states)

    def modulated(self, hidden_states: Tensor, temb: Tensor) -> Tensor:
        """What the attention sees, ``[B, G*M, W]``."""
        shift, scale, *_ = self._parts(temb)
        normed = self.norm1(hidden_states)
        grouped = normed.view(*temb.shape[:2], -1, normed.shape[-1])
        return torch.addcmul(shift, grouped, 1 + scale).view_as(hidden_states)

    def _parts(self, temb: Tensor) -> tuple[Tensor, ...]:
        """Shift, scale and gate of attention, then of the feed-forward, each ``[B, G, 1, W]``."""
        parts: tuple[Tensor, ...] = self.modulation(F.silu(temb)).unsqueeze(2).chunk(6, dim=-1)
        return parts


class ContextStem(nn.Module):
    """Strided convolutions that bring the neighbourhood of each patch of the context.

    ``[B, context*C, H, W] -> [B, H/8*W/8, width]``.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 48, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(48, 96, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(96, width, 3, stride=2, padding=1),
        )

    def forward(self, context: Tensor) -> Tensor:
        grid: Tensor = self.layers(context)
        return grid.flatten(2).transpose(1, 2)


class PixelHead(nn.Module):
    """Dilated convolutions that refine each unpatchified frame and remove patch seams.

    Takes ``[B, C_in, H, W]`` (coarse prediction, noisy input, last context frame) and a condition
    ``[B, W]``; returns a correction ``[B, C, H, W]``, zero at initialisation.
    """

    def __init__(self, in_channels: int, out_channels: int, hidden: int, width: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, hidden, 3, padding=1)
        self.modulation = nn.Linear(width, 2 * hidden)
        self.conv_mid = nn.Conv2d(hidden, hidden, 3, padding=2, dilation=2)
        self.conv_mid2 = nn.Conv2d(hidden, hidden, 3, padding=4, dilation=4)
        self.conv_out = nn.Conv2d(hidden, out_channels, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        self.conv_out.bias.data.zero_()  # type: ignore[union-attr]

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        scale, shift = self.modulation(F.silu(temb))[:, :, None, None].chunk(2, dim=1)
        h = F.silu(torch.addcmul(shift, self.conv_in(x), 1 + scale))
        h = F.silu(self.conv_mid(h))
        h = h + F.silu(self.conv_mid2(h))
        correction: Tensor = self.conv_out(h)
        return correction


class ActionTransformer3DModel(ModelMixin, ConfigMixin, CacheMixin):  # type: ignore[misc]
    """Predicts the velocity of a chunk of RGB-D frames from context frames and actions.

    Tokens are patches of ``patch_time x patch x patch`` pixels of one modality, ordered (time
    group, modality, row, column), so a chunk has ``G * 2 * (H/8) * (W/8)`` of them.

    Args:
        num_actions: size of the discrete action space; index ``num_actions`` means "no action
            given" and is what guidance's unconditional branch uses.
        sample_height, sample_width: frame size in pixels, multiples of ``patch``.
        chunk_frames: frames generated at once.
        context_frames: frames conditioned on.
        width, depth, heads, ff_mult: size of the transformer.
        head_hidden: channels of the convolutional head.
        sigma_min: x̂0 is turned into velocity with ``max(sigma, sigma_min)``.
    """

    _no_split_modules = ["ActionTransformerBlock"]  # noqa: RUF012 (diffusers' name and type)
    modality_channels = (3, 1)

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        num_actions: int = 4,
        sample_height: int = 48,
        sample_width: int = 64,
        chunk_frames: int = 4,
        context_frames: int = 4,
        patch: int = 8,
        patch_time: int = 2,
        width: int = 256,
        depth: int = 6,
        heads: int = 4,
        ff_mult: int = 4,
        head_hidden: int = 32,
        sigma_min: float = 0.02,
    ) -> None:
        super().__init__()
        channels = sum(self.modality_channels)
        self.groups = chunk_frames // patch_time
        self.grid = (sample_height // patch, sample_width // patch)
        spatial = self.grid[0] * self.grid[1]
        pixels = patch * patch

        self.embed_noisy = nn.ModuleList(
            nn.Linear(patch_time * pixels * c, width) for c in self.modality_channels
        )
        self.embed_context = nn.ModuleList(
            nn.Linear(context_frames * pixels * c, width) for c in self.modality_channels
        )
        self.stem = ContextStem(context_frames * channels, width)
        self.embed_stem = nn.Linear(width, self.groups * 2 * width)
        self.position = nn.Parameter(torch.randn(self.groups, 2, spatial, width) * 0.02)

        self.time_proj = Timesteps(width, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embed = TimestepEmbedding(width, width)
        self.action_embed = nn.Embedding(num_actions + 1, 32)
        self.action_mlp = nn.Sequential(
            nn.Linear((context_frames + chunk_frames) * 32, width),
            nn.SiLU(),
            nn.Linear(width, self.groups * width),
        )
        self.transformer_blocks = nn.ModuleList(
            ActionTransformerBlock(width, heads, ff_mult) for _ in range(depth)
        )
        self.norm_out = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation_out = nn.Linear(width, 2 * width)
        self.proj_out = nn.ModuleList(
            nn.Linear(width, patch_time * pixels * c) for c in self.modality_channels
        )
        self.head = PixelHead(3 * channels, channels, head_hidden, width)

    def patchify(self, frames: Tensor, group_frames: int) -> Tensor:
        """``[B, C, T, H, W] -> [B, T/group, H/p * W/p, group*p*p*C]``."""
        batch, channels, time, height, width = frames.shape
        p = self.config.patch
        x = frames.reshape(batch, channels, time // group_frames, group_frames, height // p, p, width // p, p)
        return x.permute(0, 2, 4, 6, 3, 5, 7, 1).flatten(4).flatten(2, 3)

    def unpatchify(self, tokens: Tensor, group_frames: int) -> Tensor:
        """Inverse of :meth:`patchify`."""
        batch, groups, _, _ = tokens.shape
        p = self.config.patch
        x = tokens.reshape(batch, groups, *self.grid, group_frames, p, p, -1)
        x = x.permute(0, 7, 1, 4, 2, 5, 3, 6)
        return x.reshape(batch, -1, groups * group_frames, self.grid[0] * p, self.grid[1] * p)

    def embed(self, noisy: Tensor, context: Tensor) -> Tensor:
        """Tokens ``[B, G*2*S, width]`` of a noisy chunk and its context frames."""
        batch = noisy.shape[0]
        stem = self.embed_stem(self.stem(context.flatten(1, 2)))
        stem = stem.view(batch, -1, self.groups, 2, stem.shape[-1] // (2 * self.groups))
        modalities: list[Tensor] = []
        split = zip(
            noisy.split(self.modality_channels, 1), context.split(self.modality_channels, 1), strict=True
        )
        for index, (x, c) in enumerate(split):
            noisy_patches = self.patchify(x, self.config.patch_time)
            context_patches = self.patchify(c, self.config.context_frames)
            modalities.append(
                self.embed_noisy[index](noisy_patches) + self.embed_context[index](context_patches)
            )
        tokens: Tensor = torch.stack(modalities, dim=2) + self.position + stem.permute(0, 2, 3, 1, 4)
        return tokens.flatten(1, 3)

    def condition(self, timestep: Tensor, actions: Tensor) -> Tensor:
        """Modulation input ``[B, G, width]`` from timesteps ``[B]`` and actions ``[B, context+chunk]``."""
        time: Tensor = self.time_embed(self.time_proj(timestep).to(self.position.dtype))
        action: Tensor = self.action_mlp(self.action_embed(actions).flatten(1))
        return time[:, None] + action.view(len(actions), self.groups, -1)

    def modulated_input(self, noisy: Tensor, timestep: Tensor, context: Tensor, actions: Tensor) -> Tensor:
        """What the first block attends to, ``[B, G*2*S, width]``; arguments as in :meth:`forward`."""
        first = cast(ActionTransformerBlock, self.transformer_blocks[0])
        return first.modulated(self.embed(noisy, context), self.condition(timestep, actions))

    def predict_clean(self, noisy: Tensor, timestep: Tensor, context: Tensor, actions: Tensor) -> Tensor:
        """x̂0 ``[B, C, T, H, W]``; arguments as in :meth:`forward`."""
        batch, _, frames, height, width = noisy.shape
        temb = self.condition(timestep, actions)
        tokens = self.embed(noisy, context)
        for block in self.transformer_blocks:
            tokens = block(tokens, temb)
        shift, scale = self.modulation_out(F.silu(temb)).unsqueeze(2).chunk(2, dim=-1)
        tokens = self.norm_out(tokens).view(batch, self.groups, -1, tokens.shape[-1])
        tokens = torch.addcmul(shift, tokens, 1 + scale)
        tokens = tokens.view(batch, self.groups, 2, -1, tokens.shape[-1])
        patches = [proj(tokens[:, :, i]) for i, proj in enumerate(self.proj_out)]
        coarse = torch.cat([self.unpatchify(p, self.config.patch_time) for p in patches], dim=1)
        last = context[:, :, -1:].expand_as(coarse)
        pixels = torch.cat([coarse, noisy, last], dim=1).transpose(1, 2).flatten(0, 1)
        correction: Tensor = self.head(pixels, temb.mean(1).repeat_interleave(frames, 0))
        return coarse + correction.view(batch, frames, -1, height, width).transpose(1, 2)

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        context: Tensor,
        actions: Tensor,
        return_dict: bool = True,
    ) -> ActionTransformerOutput | tuple[Tensor]:
        """Velocity of a batch of rows.

        Args:
            hidden_states: noisy chunks ``[B, 4, chunk_frames, H, W]``, RGB and depth in [-1, 1].
            timestep: ``[B]``, ``1000 * sigma`` of each row.
            context: clean frames ``[B, 4, context_frames, H, W]`` before the chunk.
            actions: int64 ``[B, context_frames + chunk_frames]``; entry ``i`` led to frame ``i``.
        """
        clean = self.predict_clean(hidden_states, timestep, context, actions)
        sigma = (timestep / NUM_TRAIN_TIMESTEPS).clamp(min=self.config.sigma_min)
        velocity = (hidden_states - clean) / sigma.view(-1, 1, 1, 1, 1).to(clean.dtype)
        return ActionTransformerOutput(sample=velocity) if return_dict else (velocity,)
