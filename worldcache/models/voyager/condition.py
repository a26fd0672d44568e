"""What a chunk is conditioned on: the scene drawn along the camera's path, and encoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import max_pool3d, pad

from worldcache.actions import Pose
from worldcache.models.transfer import to_device
from worldcache.models.voyager.codec import Codec, stack_pixels
from worldcache.models.voyager.scene import (
    Drawing,
    Scene,
    back_project,
    draw,
    enlarge,
    relative_inverse,
    world_to_camera,
)
from worldcache.models.voyager.tokens import SEPARATOR

CELL = (4, 8, 8)
"""Frames and pixels that become one place of a latent."""

EXTRA_CHANNELS = 2
"""Of the input, beside three latents: the flag of the first frame, and the mask."""


@dataclass(frozen=True)
class View:
    """The scene along the camera's path, at the model's resolution.

    Attributes:
        rgb: uint8 ``[F, H, W, 3]``, black where nothing is known.
        depth: float32 ``[F, H, W]``, the relative inverse depth.
        mask: bool ``[F, H, W]``, where something is known.
    """

    rgb: NDArray[np.uint8]
    depth: NDArray[np.float32]
    mask: NDArray[np.bool_]


def draw_half(scene: Scene, poses: Sequence[Pose], focal: float) -> list[Drawing]:
    """The scene at half the resolution, from where it was seen and from each pose.

    Args:
        poses: camera-to-world, in the coordinates of the camera that saw the scene.
        focal: of the camera in pixels at the full resolution.
    """
    height, width = scene.depth.shape
    points, colours = back_project(scene.depth, focal), scene.image.reshape(-1, 3)
    size = (height // 2, width // 2)
    return [draw(points, colours, matrix, focal / 2, size) for matrix in world_to_camera(poses)]


def view_along(scene: Scene, poses: Sequence[Pose], focal: float) -> View:
    """The scene along the camera's path, the observed frame first; arguments as of :func:`draw_half`."""
    drawings = draw_half(scene, poses, focal)
    return View(
        np.stack([enlarge(drawing.image) for drawing in drawings]),
        np.stack([enlarge(relative_inverse(drawing)) for drawing in drawings]).astype(np.float32),
        np.stack([drawing.mask.repeat(2, 0).repeat(2, 1) for drawing in drawings]),
    )


def mask_latent(mask: Tensor) -> Tensor:
    """Which places of a latent are known: +1 if all their pixels are, else -1; float32 ``[1, T, h, w]``.

    Args:
        mask: bool ``[F, H, W]``, of RGB and of depth alike. The first frame counts four times.
    """
    between = mask.new_ones(mask.shape[0], SEPARATOR, mask.shape[2])
    unknown = ~torch.cat([mask, between, mask], dim=1)
    unknown = torch.cat([unknown[:1].expand(CELL[0] - 1, -1, -1), unknown])
    return 1 - 2 * max_pool3d(unknown[None].float(), CELL)


def reference_picture(scene: Scene, focal: float) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """The observed frame and its relative inverse depth: uint8 ``[H, W, 3]`` and float32 ``[H, W]``."""
    first = draw_half(scene, (), focal)[0]
    return scene.image, enlarge(relative_inverse(first)).astype(np.float32)


@dataclass(frozen=True)
class ConditionLatents:
    """What is put beside the noisy latent.

    Attributes:
        reference: of the observed frame, float32 ``[C, 1, h, w]``.
        channels: ``[2 C + 2, T, h, w]``: the reference in the first frame, its flag, the drawn frames and
            their mask.
    """

    reference: Tensor
    channels: Tensor


def encode_condition(
    scene: Scene,
    poses: Sequence[Pose],
    focal: float,
    codec: Codec,
    device: torch.device,
    generator: torch.Generator,
) -> ConditionLatents:
    """Draw and encode; the reference's latent is sampled first, then that of the drawn frames.

    Args:
        scene, poses, focal: as of :func:`draw_half`.
    """
    view = view_along(scene, poses, focal)
    image = torch.from_numpy(scene.image)[None]
    depth = to_device(torch.from_numpy(view.depth), device)
    reference = codec.encode(stack_pixels(to_device(image, device), depth[:1]), generator)
    drawn = codec.encode(stack_pixels(to_device(torch.from_numpy(view.rgb), device), depth), generator)
    mask = mask_latent(to_device(torch.from_numpy(view.mask), device))
    return ConditionLatents(reference, join_channels(reference, drawn, mask))


def join_channels(reference: Tensor, drawn: Tensor, mask: Tensor) -> Tensor:
    """``[C, 1, h, w]``, ``[C, T, h, w]`` and ``[1, T, h, w]`` as the channels beside the noisy latent."""
    after = (0, 0, 0, 0, 0, drawn.shape[1] - 1)
    flag = torch.ones_like(reference[:1])
    return torch.cat([pad(reference, after), pad(flag, after), drawn, mask])
