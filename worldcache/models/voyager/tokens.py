"""Voyager's latents as tokens: patches of 2x2, RGB first, then depth."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from worldcache.models.base import TokenView
from worldcache.policies.base import TokenLayout

SEPARATOR = 16
"""Rows of pixels between RGB and depth."""

SEPARATOR_LATENTS = 2
"""Rows of the latent that they become."""


def patchify(latent: Tensor, size: int) -> Tensor:
    """``[B, C, T, h, w]`` as patches ``[B, T, h/size, w/size, C * size * size]``, as the last layer does."""
    tiles = latent.unflatten(4, (-1, size)).unflatten(3, (-1, size))
    patches: Tensor = tiles.permute(0, 2, 3, 5, 1, 4, 6).flatten(4)
    return patches


def unpatchify(patches: Tensor, size: int) -> Tensor:
    """Inverse of :func:`patchify`."""
    tiles = patches.unflatten(4, (-1, size, size))
    latent: Tensor = tiles.permute(0, 4, 1, 2, 5, 3, 6).flatten(5).flatten(3, 4)
    return latent


class VoyagerTokens(TokenView):
    """Patches of the RGB part, the rows that separate it from depth among them, then those of depth.

    The published code has them row by row, RGB and depth of a frame after each other. No policy depends on
    the order.

    Args:
        shape: of a latent, ``[C, T, h, w]``.
        patch: its patches' size.
    """

    def __init__(self, shape: Sequence[int], patch: int) -> None:
        channels, frames, height, width = shape
        depth = (height - SEPARATOR_LATENTS) // 2 // patch
        rows, columns = height // patch - depth, width // patch
        self._patch, self._rows = patch, rows
        self.grids = {"rgb": (frames, rows, columns), "depth": (frames, depth, columns)}
        self.layout = TokenLayout(("rgb", "depth"), (frames * rows * columns, frames * depth * columns))
        self.width = channels * patch**2

    def to_tokens(self, output: Tensor) -> Tensor:
        patches = patchify(output, self._patch)
        parts = patches[:, :, : self._rows], patches[:, :, self._rows :]
        return torch.cat([part.flatten(1, 3) for part in parts], dim=1).flatten(0, 1)

    def from_tokens(self, tokens: Tensor) -> Tensor:
        rows = tokens.view(-1, self.layout.tokens_per_branch, self.width).split(self.layout.counts, dim=1)
        parts = [
            part.unflatten(1, self.grids[name]) for part, name in zip(rows, self.layout.names, strict=True)
        ]
        return unpatchify(torch.cat(parts, dim=2), self._patch)
