"""SANA-WM as a :class:`WorldModel`, on the parts of diffusers' ``SanaWMPipeline``."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.sana_wm.cam_utils import prepare_camera
from numpy.typing import NDArray
from torch import Tensor

from worldcache.core import UNCONDITIONED, Conditioning, Frames, Modality, ModelInfo, Observation
from worldcache.decoded import Decoded
from worldcache.errors import InvalidInput, UnknownName
from worldcache.models.base import Row, TokenView, WorldModel
from worldcache.models.sana_wm import camera
from worldcache.models.sana_wm.loading import Parts, load_parts, random_parts
from worldcache.models.sana_wm.pixels import Pixels, to_frames
from worldcache.models.sana_wm.residence import Residence
from worldcache.models.sana_wm.state import SanaWMCondition, SanaWMContext, SanaWMTokens
from worldcache.models.sana_wm.text import TextEncoder
from worldcache.models.transfer import to_device
from worldcache.sampler import FlowMatchSampler, Sampler

DEFAULT_FOV = 90.0
"""Horizontal angle of view in degrees where a request gives none; the pipeline has no default."""

OFFERED = ("prompt", "negative_prompt", "fov")
"""What a request may be conditioned on."""


class SanaWMWorldModel(WorldModel):
    """A picture that a camera moves through, led by keys or by poses.

    Args:
        parts: what it is made of.
        device, dtype: of the weights, which have the dtype already. Latents stay float32.
        offload: whether text encoder and VAE lie on the host while they are not used.

    Raises:
        InvalidInput: the device cannot compute in the dtype.
    """

    goes_on_from_frames: ClassVar[bool] = True

    def __init__(
        self, parts: Parts, *, device: torch.device, dtype: torch.dtype, offload: bool = False
    ) -> None:
        if device.type == "cpu" and dtype != torch.float32:
            message = f"on the CPU diffusers' camera code computes in float32 only, not in {dtype}"
            raise InvalidInput(message, param="dtype", code="not_supported")
        pipe = parts.pipe
        for module in (pipe.transformer, pipe.vae, pipe.text_encoder):
            if module is not None:
                module.eval().requires_grad_(False)
        self.transformer = pipe.transformer.to(device)
        self.device, self._dtype = device, dtype
        self._scheduler = pipe.scheduler
        encoder = None
        if parts.text is None:
            encoder = Residence(pipe.text_encoder, device, offload=offload)
        self._read_text = TextEncoder(pipe, encoder, parts.text, device)
        self._pixels = Pixels(Residence(pipe.vae, device, offload=offload), pipe.image_processor, device)
        self._space, self._time = pipe.vae.spatial_compression_ratio, pipe.vae.temporal_compression_ratio
        self._modules = (pipe.transformer, pipe.vae, pipe.text_encoder)
        self.info = _describe(parts, self._time)

    @classmethod
    def load(
        cls, path: str | Path | None, *, device: torch.device, dtype: torch.dtype, offload: bool = False
    ) -> SanaWMWorldModel:
        """Load a folder in the layout of the published weights, or a repository of the hub.

        Args:
            path: folder or id; the published weights if ``None``.
            offload: keep text encoder and VAE on the host while they are not used.

        Raises:
            ModelLoadError: the message names what is missing or wrong.
        """
        return cls(load_parts(path, device=device, dtype=dtype), device=device, dtype=dtype, offload=offload)

    @classmethod
    def random(
        cls,
        *,
        device: torch.device,
        dtype: torch.dtype,
        seed: int = 0,
        configs: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> SanaWMWorldModel:
        """A model with random weights, for tests and timing.

        Args:
            configs: arguments of ``transformer``, ``vae``, ``scheduler`` and ``sizes`` that differ from the
                published ones.
        """
        parts = random_parts(device=device, dtype=dtype, seed=seed, configs=configs)
        return cls(parts, device=device, dtype=dtype)

    def begin(self, observation: Observation, conditioning: Conditioning = UNCONDITIONED) -> SanaWMContext:
        for name in ("task", "goal", "fps"):
            if getattr(conditioning, name) is not None:
                message = (
                    f"model {self.info.id!r} can be conditioned on {', '.join(OFFERED)}; leave {name} out"
                )
                raise InvalidInput(message, param=f"conditioning.{name}", code="not_supported")
        fov = DEFAULT_FOV if conditioning.fov is None else conditioning.fov
        if not 0 < fov < 180:
            raise InvalidInput("fov must be above 0 and below 180 degrees", param="conditioning.fov")
        frame = self._observed(observation)
        text = self._read_text(conditioning.prompt, conditioning.negative_prompt)
        intrinsics = camera.intrinsics(fov, *self.info.resolution)
        return SanaWMContext(self._pixels.encode(frame), None, np.eye(4), intrinsics, text)

    def condition(
        self, context: SanaWMContext, actions: Sequence[Any], generator: torch.Generator
    ) -> SanaWMCondition:
        first = context.first
        if first is None:
            assert context.before is not None
            first = self._pixels.encode(context.before.last()["rgb"][0])  # as the client has seen it
        poses = camera.trajectory(context.pose, actions).astype(np.float32)
        seen = prepare_camera(
            poses,
            np.tile(context.intrinsics, (len(poses), 1)),
            target_size=self.info.resolution,
            vae_stride=(self._time, self._space, self._space),
        )
        cameras, rays = (
            to_device(seen[name].to(self._dtype), self.device) for name in ("raymap", "chunk_plucker")
        )
        return SanaWMCondition(first, cameras, rays, context.text)

    def latent_shape(self, frames: int) -> tuple[int, ...]:
        height, width = self.info.resolution
        channels = self.transformer.config.in_channels
        return (channels, frames // self._time + 1, height // self._space, width // self._space)

    def initial_latent(self, condition: SanaWMCondition, frames: int, generator: torch.Generator) -> Tensor:
        noise = super().initial_latent(condition, frames, generator)
        return torch.cat([condition.first, noise[:, 1:]], dim=1)

    def sampler(self, num_steps: int) -> Sampler:
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(self._scheduler.config)
        return FlowMatchSampler(scheduler, num_steps, own_levels=True)

    def batch_key(self, row: Row) -> Hashable:
        hidden, _ = row.condition.text.branch(row.unconditional)
        return (*super().batch_key(row), tuple(hidden.shape))  # type: ignore[misc]

    def evaluate(self, rows: Sequence[Row]) -> Tensor:
        """The velocity of every latent frame but the first, which is given and stays."""
        texts = [row.condition.text.branch(row.unconditional) for row in rows]
        with torch.no_grad():
            velocity: Tensor = self.transformer(
                torch.stack([row.latent for row in rows]).to(self._dtype),
                self._timesteps(rows),
                torch.stack([hidden for hidden, _ in texts]),
                mask=torch.stack([mask for _, mask in texts]),
                camera_conditions=torch.stack([row.condition.cameras for row in rows]),
                chunk_plucker=torch.stack([row.condition.rays for row in rows]),
                return_dict=False,
            )[0]
        return torch.nn.functional.pad(velocity[:, :, 1:].float(), (0, 0, 0, 0, 1, 0))

    def tokens(self, shape: Sequence[int]) -> TokenView:
        return SanaWMTokens(shape)

    def render(self, latent: Tensor) -> dict[str, Tensor]:
        return {"rgb": self._pixels.decode(latent)}

    def decode(self, latent: Tensor) -> Frames:
        return {"rgb": to_frames(self._pixels.decode(latent))}

    def advance(
        self, context: SanaWMContext, latent: Tensor, decoded: Decoded, actions: Sequence[Any]
    ) -> SanaWMContext:
        pose = camera.trajectory(context.pose, actions)[-1]
        return replace(context, first=None, before=decoded, pose=pose)

    @property
    def memory_bytes(self) -> int:
        modules = [module for module in self._modules if module is not None]
        return sum(p.numel() * p.element_size() for module in modules for p in module.parameters())

    @torch.inference_mode()
    def warm(self) -> None:
        frames = self.info.chunk_lengths[0]
        black = np.zeros((1, *self.info.resolution, 3), np.uint8)
        generator = torch.Generator().manual_seed(0)
        condition = self.condition(self.begin(Observation(frames=black)), ("none",) * frames, generator)
        latent = self.initial_latent(condition, frames, generator)
        self.evaluate([Row(latent, 1000.0, condition), Row(latent, 1000.0, condition, True)])
        self._pixels.decode(latent)

    def _observed(self, observation: Observation) -> NDArray[np.uint8]:
        """The newest frame of the observation, ``[H, W, 3]``."""
        if observation.start is not None:
            raise UnknownName("start", observation.start, self.info.starts, param="observation.start")
        frames, size = observation.frames, self.info.resolution
        if frames is None or not len(frames):
            raise InvalidInput("give a frame to begin from", param="observation")
        if frames.ndim != 4 or frames.shape[1:] != (*size, 3) or frames.dtype != np.uint8:
            message = f"frames must be {size[0]}x{size[1]} pixels high and wide, in 8-bit RGB"
            raise InvalidInput(message, param="observation.frames")
        newest: NDArray[np.uint8] = frames[-1]
        return newest

    def _timesteps(self, rows: Sequence[Row]) -> Tensor:
        """``[B, 1, T]``: each row's own, and 0 for its first frame."""
        timesteps = torch.tensor([row.timestep for row in rows]).view(-1, 1, 1)
        noisy = torch.arange(rows[0].latent.shape[1]) > 0
        return to_device(timesteps * noisy, self.device)


def _describe(parts: Parts, stride: int) -> ModelInfo:
    sizes, calibration = parts.sizes, parts.calibration
    return ModelInfo(
        id="sana-wm",
        description="SANA-WM: video from a picture and a prompt, along a camera path of keys or poses",
        action_space=camera.action_space(),
        modalities=(Modality("rgb", 3, "8-bit sRGB", 255.0),),
        resolution=(sizes.height, sizes.width),
        fps=16.0,
        context_frames=1,
        chunk_frames=sizes.chunk_frames,
        chunk_lengths=tuple(range(stride, sizes.chunk_frames + 1, stride)),
        observed_frames=1,
        num_inference_steps=60,
        guidance_scale=5.0,
        starts=(),
        presets=calibration.presets,
        default_preset="balanced",
        auto_preset=calibration.auto,
        calibrations=calibration.policies,
        licence="Apache-2.0",
        notice="The weights are not part of this software. SANA-WM is under the Apache licence 2.0; its text "
        "encoder is Gemma 2, which has terms of its own.",
        conditioning=dict.fromkeys(OFFERED, ()),
    )
