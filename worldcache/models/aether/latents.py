"""Where everything lies in Aether's latents, conditions and tokens. Knows no network.

A latent is ``[T, 56, h, w]``: 16 channels of RGB, 16 of disparity, and four frames of a 6-channel ray map.
Its condition is ``[T, 40, h, w]``: 16 channels of RGB, then the ray map. ``F`` frames make
``T = (F - 1) / 4 + 1`` latent frames.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from worldcache.models.base import TokenView
from worldcache.policies.base import TokenLayout

PICTURE = 16
"""Latent channels of a picture, RGB or disparity."""

FOLD = 4
"""Frames in a latent frame, but for the first, which holds one."""

RAYS = 6
"""Channels of a ray map."""

CHANNELS = (PICTURE, PICTURE, FOLD * RAYS)
"""Of RGB, disparity and ray map, in that order."""

MODALITIES = ("rgb", "depth", "raymap")
"""Names of the three in token statistics."""


def latent_frames(frames: int) -> int:
    """Latent frames of so many frames, the observed one included."""
    return (frames - 1) // FOLD + 1


def pack_raymap(raymap: Tensor) -> Tensor:
    """``[F, 6, h, w]`` as ``[T, 24, h, w]``; latent frame t holds frames t, t + T, t + 2T, t + 3T.

    If F is no multiple of 4, the first frames are put before it again to make it one.
    """
    if missing := -len(raymap) % FOLD:
        raymap = torch.cat([raymap[:missing], raymap])
    groups: Tensor = raymap.unflatten(0, (FOLD, -1))
    return groups.transpose(0, 1).flatten(1, 2)


def unpack_raymap(packed: Tensor, frames: int) -> Tensor:
    """Inverse of :func:`pack_raymap`: the last ``frames`` frames that ``[T, 24, h, w]`` holds."""
    groups: Tensor = packed.unflatten(1, (FOLD, -1))
    return groups.transpose(0, 1).flatten(0, 1)[-frames:]


def assemble_condition(
    pictures: Tensor, goal: Tensor | None, rays: Tensor | None, *, length: int, task: str
) -> tuple[Tensor, Tensor | None]:
    """What the backbone sees beside the noisy latent.

    Args:
        pictures: RGB latents ``[1 or T, 16, h, w]`` of the image, or of the whole video.
        goal: ``[1, 16, h, w]``, for the last slot.
        rays: packed ray map ``[T, 24, h, w]``; zeros if there is none.
        length: T.
        task: decides what guidance's second branch does not see.

    Returns:
        ``[T, 40, h, w]`` for the first branch, and for the second: in planning it has no pictures, in
        prediction not the first; reconstruction has no second branch.
    """
    condition = pictures.new_zeros(length, PICTURE + FOLD * RAYS, *pictures.shape[-2:])
    condition[: len(pictures), :PICTURE] = pictures
    if goal is not None:
        condition[-len(goal) :, :PICTURE] = goal
    if rays is not None:
        condition[:, PICTURE:] = rays
    if task == "reconstruction":
        return condition, None
    unguided = condition.clone()
    unguided[: length if task == "planning" else 1, :PICTURE] = 0
    return condition, unguided


def split_latent(latent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """RGB, disparity and packed ray map of a latent, as views."""
    rgb, disparity, rays = latent.split(CHANNELS, dim=1)
    return rgb, disparity, rays


class AetherTokens(TokenView):
    """Latent pixels of RGB, of disparity, then of the ray map, each padded to 24 channels.

    Args:
        shape: of a latent, ``[T, 56, h, w]``.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        frames, channels, height, width = shape
        assert channels == sum(CHANNELS)
        self._grid = (frames, height, width)
        self.layout = TokenLayout(MODALITIES, (frames * height * width,) * len(MODALITIES))
        self.width = max(CHANNELS)
        self.grids = dict.fromkeys(MODALITIES, self._grid)

    def to_tokens(self, output: Tensor) -> Tensor:
        tokens = output.new_zeros(len(output), len(CHANNELS), *self._grid, self.width)
        for index, part in enumerate(output.split(CHANNELS, dim=2)):
            tokens[:, index, ..., : part.shape[2]] = part.permute(0, 1, 3, 4, 2)
        return tokens.view(-1, self.width)

    def from_tokens(self, tokens: Tensor) -> Tensor:
        parts = tokens.view(-1, len(CHANNELS), *self._grid, self.width).unbind(dim=1)
        cut = [part[..., :channels] for part, channels in zip(parts, CHANNELS, strict=True)]
        return torch.cat(cut, dim=-1).permute(0, 1, 4, 2, 3).contiguous()
