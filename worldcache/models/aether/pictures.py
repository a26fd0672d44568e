"""Decoded tensors as what users see: colours, depths, camera poses."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worldcache.models.aether.geometry import poses_from_raymap
from worldcache.models.aether.latents import unpack_raymap


def colours(decoded: Tensor) -> Tensor:
    """The VAE's ``[F, 3, H, W]`` as ``[F, H, W, 3]``, 0 to 1."""
    return (decoded * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)


def disparities(decoded: Tensor) -> Tensor:
    """The VAE's ``[F, 3, H, W]`` as ``[F, H, W]``: the square of what it shows, not clamped."""
    return (decoded.mean(dim=1) * 0.5 + 0.5).square()


def camera_poses(rays: Tensor, frames: int) -> Tensor:
    """Camera-to-world ``[F, 4, 4]`` from a packed ray map, relative to nothing but itself."""
    return poses_from_raymap(unpack_raymap(rays, frames))[0]


def to_bytes(pictures: Tensor) -> NDArray[np.uint8]:
    """0 to 1 on the host as 0 to 255."""
    return (pictures * 255.0).round().to(torch.uint8).numpy()


def from_bytes(frames: NDArray[np.uint8]) -> Tensor:
    """uint8 ``[F, H, W, 3]`` as the VAE's float32 ``[F, 3, H, W]``, -1 to 1."""
    return torch.tensor(frames).permute(0, 3, 1, 2).contiguous().float() / 255.0 * 2.0 - 1.0
