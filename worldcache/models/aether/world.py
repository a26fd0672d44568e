"""Aether as a :class:`WorldModel`: video, depth and camera of a scene, up to 40 frames a chunk.

Source: Aether, arXiv 2503.18945, and its published pipeline; the networks are diffusers' own.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers.schedulers.scheduling_dpm_cogvideox import CogVideoXDPMScheduler
from numpy.typing import NDArray
from torch import Tensor

from worldcache.actions import Pose
from worldcache.core import UNCONDITIONED, Conditioning, Frames, Observation
from worldcache.decoded import Decoded
from worldcache.errors import InvalidInput
from worldcache.models.aether import pictures
from worldcache.models.aether.condition import (
    AetherCondition,
    AetherInputs,
    camera_raymap,
    dynamic_guidance,
    encode_condition,
)
from worldcache.models.aether.context import IDENTITY, AetherContext, export_arrays, import_arrays
from worldcache.models.aether.geometry import CELL, depth_from_disparity
from worldcache.models.aether.info import FAR, check_conditioning, describe
from worldcache.models.aether.latents import CHANNELS, AetherTokens, latent_frames, split_latent
from worldcache.models.aether.load import Parts, load_parts
from worldcache.models.aether.random_weights import random_parts
from worldcache.models.aether.rope import rotary_table
from worldcache.models.aether.vae import PictureVAE
from worldcache.models.base import ChunkTask, Denoiser, Row, TokenView, WorldModel
from worldcache.models.transfer import to_device, to_host
from worldcache.sampler import CogVideoXDPMSampler, Sampler

MAX_SCHEDULES = 32
"""Schedules that are remembered, by number of steps."""

MAX_TABLES = 20
"""Tables of rotary positions that are remembered: as many as there are lengths times frame rates."""

TILED_PIXELS = 256 * 384
"""Frames with more pixels are encoded and decoded in tiles, as the published demo does."""


class AetherWorldModel(WorldModel):
    """Aether: what a camera will see that moves through the observed scene.

    Args:
        parts: the networks, the scheduler and the encoded empty prompt.
        device, dtype: of the backbone, which has the dtype already. Latents stay float32.
        offload: keep the VAE on the host while it does not work.
        tiled: whether the VAE works on tiles; if ``None``, on large frames only.
    """

    goes_on_from_frames: ClassVar[bool] = True

    def __init__(
        self,
        parts: Parts,
        *,
        device: torch.device,
        dtype: torch.dtype,
        offload: bool = False,
        tiled: bool | None = None,
    ) -> None:
        config = parts.transformer.config
        self.transformer = parts.transformer.to(device).eval().requires_grad_(False)
        self.device, self._dtype = device, dtype
        self._grid = (int(config.sample_height), int(config.sample_width))
        resolution = (self._grid[0] * CELL, self._grid[1] * CELL)
        tiled = resolution[0] * resolution[1] > TILED_PIXELS if tiled is None else tiled
        self.vae = PictureVAE(parts.vae, device=device, offload=offload, tiled=tiled)
        self._scheduler_config = parts.scheduler.config
        self.info = describe(resolution, int(self._scheduler_config.num_train_timesteps))
        self._prompt = parts.prompt.to(device, dtype)
        self._schedules = lru_cache(maxsize=MAX_SCHEDULES)(self._new_sampler)
        self._tables = lru_cache(maxsize=MAX_TABLES)(self._new_table)
        self._views = lru_cache(maxsize=MAX_TABLES)(AetherTokens)

    @classmethod
    def load(
        cls, path: str | Path | None, *, device: torch.device, dtype: torch.dtype, offload: bool = False
    ) -> AetherWorldModel:
        """Load a folder with all parts, or the transformer of a hub id and the rest from CogVideoX's.

        Raises:
            ModelLoadError: the message names the file or the key that is missing or wrong.
        """
        vae_device = torch.device("cpu") if offload else device
        parts = load_parts(path, device=device, vae_device=vae_device, dtype=dtype)
        return cls(parts, device=device, dtype=dtype, offload=offload)

    @classmethod
    def random(
        cls,
        *,
        device: torch.device,
        dtype: torch.dtype,
        seed: int = 0,
        configs: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> AetherWorldModel:
        """A model of the published size with random weights, to measure what does not depend on them.

        Args:
            device, dtype: as of :meth:`load`; weights are made there, in that format.
            seed: of the weights.
            configs: other sizes: the configurations of ``transformer``, ``vae`` and ``scheduler``.
        """
        parts = random_parts(configs or {}, device=device, dtype=dtype, seed=seed)
        return cls(parts, device=device, dtype=dtype)

    def begin(self, observation: Observation, conditioning: Conditioning = UNCONDITIONED) -> AetherContext:
        task, fps, fov = check_conditioning(self.info, conditioning)
        if observation.start is not None or observation.frames is None or not len(observation.frames):
            raise InvalidInput("give at least one frame; the model has no starts", param="observation.frames")
        frames = self._check_picture(observation.frames, "observation.frames")
        goal = None
        if conditioning.goal is not None:
            goal = self._check_picture(conditioning.goal[None], "conditioning.goal")
        return AetherContext(task, fps, fov, frames if task == "reconstruction" else frames[-1:], goal)

    def condition(
        self, context: AetherContext, actions: Sequence[Pose | None], generator: torch.Generator
    ) -> AetherCondition:
        count = len(actions) + 1
        frames = self._observed(context)
        if context.task == "reconstruction" and len(frames) < count:
            lengths = ", ".join(str(length + 1) for length in self.info.chunk_lengths)
            raise InvalidInput(
                f"{len(frames)} frames cannot be reconstructed; observe {lengths}, with one action less",
                param="observation.frames",
            )
        inputs = AetherInputs(
            context.task,
            context.fps,
            count,
            pictures.from_bytes(frames[:count]),
            None if context.goal is None else pictures.from_bytes(context.goal),
            camera_raymap(context, actions, self.info.resolution),
        )
        return encode_condition(inputs, self.vae, generator, self._dtype)

    def latent_shape(self, frames: int) -> tuple[int, ...]:
        return (latent_frames(frames + self.info.observed_frames), sum(CHANNELS), *self._grid)

    def sampler(self, num_steps: int) -> Sampler:
        return self._schedules(num_steps).fresh()

    def _new_sampler(self, num_steps: int) -> CogVideoXDPMSampler:
        return CogVideoXDPMSampler(CogVideoXDPMScheduler.from_config(self._scheduler_config), num_steps)

    def own_denoiser(self, task: ChunkTask) -> Denoiser | None:
        """None of its own.

        Raises:
            InvalidInput: a reconstruction is to be guided, which it cannot be.
        """
        if task.condition.unguided is None and task.guidance_scale != 1.0:
            raise InvalidInput(
                f"{task.condition.task} cannot be guided; set guidance_scale to 1", param="guidance_scale"
            )
        return None

    def guidance(self, scale: float, sampler: Sampler) -> tuple[float, ...]:
        return (
            super().guidance(scale, sampler) if scale == 1.0 else dynamic_guidance(scale, sampler.timesteps)
        )

    def batch_key(self, row: Row) -> Hashable:
        return (super().batch_key(row), row.condition.fps)

    def evaluate(self, rows: Sequence[Row]) -> Tensor:
        noisy = torch.stack([row.latent for row in rows]).to(self._dtype)
        seen = [row.condition.unguided if row.unconditional else row.condition.latents for row in rows]
        timesteps = to_device(torch.tensor([row.timestep for row in rows]), self.device)
        output: Tensor = self.transformer(
            torch.cat([noisy, torch.stack(seen)], dim=2),
            self._prompt.expand(len(rows), -1, -1),
            timesteps,
            image_rotary_emb=self._tables(noisy.shape[1], rows[0].condition.fps),
            return_dict=False,
        )[0]
        return output.float()

    def _new_table(self, length: int, fps: float) -> tuple[Tensor, Tensor]:
        config = self.transformer.config
        rows, columns = (size // config.patch_size for size in self._grid)
        cosine, sine = rotary_table((length, rows, columns), config.attention_head_dim, fps)
        return to_device(cosine, self.device), to_device(sine, self.device)

    def tokens(self, shape: Sequence[int]) -> TokenView:
        return self._views(tuple(shape))

    def render(self, latent: Tensor) -> dict[str, Tensor]:
        rgb, depth = self._decode(latent)
        return {"rgb": rgb, "depth": (depth / FAR).clamp(max=1.0)}

    def decode(self, latent: Tensor) -> Frames:
        rgb, depth = self._decode(latent)
        poses = pictures.camera_poses(split_latent(latent)[2], len(rgb))
        return {
            "rgb": pictures.to_bytes(rgb),
            "depth": depth.numpy().copy(),
            "pose": to_host(poses).numpy().copy(),
        }

    def _decode(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Colours ``[F, H, W, 3]``, 0 to 1, and depths ``[F, H, W]``, on the host."""
        rgb, disparity, _ = split_latent(latent)
        colours = to_host(pictures.colours(self.vae.decode(rgb)).contiguous())
        return colours, to_host(depth_from_disparity(pictures.disparities(self.vae.decode(disparity))))

    def advance(
        self, context: AetherContext, latent: Tensor, decoded: Decoded, actions: Sequence[Pose | None]
    ) -> AetherContext:
        """Go on from the last frame, or in reconstruction with the rest of the video.

        If the camera was left to the model, coordinates start anew at that frame.
        """
        origin = actions[-1] or IDENTITY
        if context.task == "reconstruction":
            return replace(context, frames=context.frames[len(actions) :], origin=origin)
        return replace(context, before=decoded, origin=origin)

    def _observed(self, context: AetherContext) -> NDArray[np.uint8]:
        """The frames that a chunk starts from: the last one of the chunk before, if there was one."""
        return context.frames if context.before is None else context.before.last()["rgb"]

    def export_context(self, context: AetherContext) -> dict[str, NDArray[Any]]:
        return export_arrays(context, self._observed(context))

    def import_context(self, arrays: Mapping[str, NDArray[Any]]) -> AetherContext:
        return import_arrays(arrays, self.info)

    @property
    def memory_bytes(self) -> int:
        """Bytes of the weights on the device; an offloaded VAE is not there."""
        kept = (*self.transformer.parameters(), self._prompt)
        weights: int = sum(tensor.numel() * tensor.element_size() for tensor in kept)
        return weights + self.vae.device_bytes

    @torch.inference_mode()
    def warm(self) -> None:
        height, width = self.info.resolution
        context = self.begin(Observation(frames=np.zeros((1, height, width, 3), np.uint8)))
        frames, generator = self.info.chunk_length(1), torch.Generator().manual_seed(0)
        condition = self.condition(context, (None,) * frames, generator)
        latent = self.initial_latent(condition, frames, generator)
        for _ in range(2):
            self.evaluate([Row(latent, self.sampler(1).timesteps[0], condition)])
        self.decode(latent)

    def _check_picture(self, frames: NDArray[np.uint8], param: str) -> NDArray[np.uint8]:
        height, width = self.info.resolution
        if frames.dtype != np.uint8 or frames.shape[1:] != (height, width, 3):
            raise InvalidInput(
                f"frames must be {height}x{width} pixels high and wide, 8-bit RGB", param=param
            )
        return frames
