"""From pixels and cameras to what the backbone sees beside a noisy latent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from worldcache.actions import Pose
from worldcache.models.aether.context import AetherContext, relative_poses
from worldcache.models.aether.geometry import intrinsics_from_focal, raymap_from_poses
from worldcache.models.aether.latents import assemble_condition, latent_frames, pack_raymap
from worldcache.models.aether.vae import PictureVAE
from worldcache.models.transfer import to_device


@dataclass(frozen=True)
class AetherCondition:
    """What the backbone sees of a chunk beside its noisy latent.

    Attributes:
        task: one of the model's.
        fps: frames a second.
        latents: ``[T, 40, h, w]`` in the backbone's format.
        unguided: the same for guidance's second branch; ``None`` in reconstruction.
    """

    task: str
    fps: float
    latents: Tensor
    unguided: Tensor | None


@dataclass(frozen=True)
class AetherInputs:
    """What a condition is made of, on the host.

    Attributes:
        task: one of the model's.
        fps: frames a second.
        frames: of the chunk, the observed one included.
        video: ``[1, 3, H, W]``, -1 to 1; all frames in reconstruction.
        goal: ``[1, 3, H, W]`` in planning.
        raymap: ``[frames, 6, h, w]``; ``None`` leaves the camera to the model.
    """

    task: str
    fps: float
    frames: int
    video: Tensor
    goal: Tensor | None = None
    raymap: Tensor | None = None


def encode_condition(
    inputs: AetherInputs, vae: PictureVAE, generator: torch.Generator, dtype: torch.dtype
) -> AetherCondition:
    """The condition of a chunk, in ``dtype`` on the VAE's device.

    The generator draws the VAE's samples, the video's before the goal's.
    """
    video = vae.encode(inputs.video, generator)
    goal = None if inputs.goal is None else vae.encode(inputs.goal, generator)
    rays = None if inputs.raymap is None else to_device(pack_raymap(inputs.raymap), video.device)
    length = latent_frames(inputs.frames)
    latents, unguided = assemble_condition(video, goal, rays, length=length, task=inputs.task)
    if unguided is not None:
        unguided = unguided.to(dtype)
    return AetherCondition(inputs.task, inputs.fps, latents.to(dtype), unguided)


def camera_raymap(
    context: AetherContext, actions: Sequence[Pose | None], resolution: tuple[int, int]
) -> Tensor | None:
    """The ray map of a chunk's cameras, ``None`` if they are left to the model.

    Raises:
        InvalidInput: some frames have a pose and others none.
    """
    poses = relative_poses(context, actions)
    if poses is None:
        return None
    focal = resolution[1] / 2 / math.tan(math.radians(context.fov) / 2)
    intrinsics = intrinsics_from_focal(torch.full((len(poses),), focal), resolution)
    return raymap_from_poses(poses, intrinsics, resolution)


def dynamic_guidance(scale: float, timesteps: Sequence[float]) -> tuple[float, ...]:
    """CogVideoX's dynamic guidance, which was published with timesteps where it means steps.

    They go up to 999, so that over 50 steps the result looks random in [1, 1 + scale].
    """
    steps = len(timesteps)
    turns = (((steps - timestep) / steps) ** 5.0 for timestep in timesteps)
    return tuple(1 + scale * ((1 - math.cos(math.pi * turn)) / 2) for turn in turns)
