"""Rotary positions of Aether's video tokens, with a time axis that depends on the frame rate.

Source: CogVideoX (arXiv 2408.06072) for the split of a head's channels: a quarter for time, three eighths
each for rows and columns; Aether for the time axis.
"""

from __future__ import annotations

import torch
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from torch import Tensor

BASE_FPS = 12
"""Frames a second at which time advances by 1 in a latent frame."""


def rotary_table(grid: tuple[int, int, int], head_dim: int, fps: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines ``[T * h * w, head_dim]``, float32 on the host.

    Args:
        grid: tokens in time, down and across, after patching.
        head_dim: channels of an attention head, a multiple of 16.
        fps: of the video; the time axis is scaled by ``12 / fps``.
    """
    time, rows, columns = grid
    axes = (
        (torch.arange(time, dtype=torch.float32) * (BASE_FPS / fps), head_dim // 4, (time, 1, 1)),
        (torch.arange(rows, dtype=torch.float32), head_dim // 8 * 3, (1, rows, 1)),
        (torch.arange(columns, dtype=torch.float32), head_dim // 8 * 3, (1, 1, columns)),
    )
    cosines, sines = [], []
    for positions, channels, shape in axes:
        cosine, sine = get_1d_rotary_pos_embed(channels, positions, use_real=True)
        cosines.append(cosine.view(*shape, channels).expand(*grid, channels))
        sines.append(sine.view(*shape, channels).expand(*grid, channels))
    return torch.cat(cosines, dim=-1).flatten(0, 2), torch.cat(sines, dim=-1).flatten(0, 2)
