"""HunyuanWorld-Voyager as a :class:`WorldModel`: RGB-D video along a camera's path."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from numpy.typing import NDArray
from torch import Tensor

from worldcache.actions import CameraPoseActionSpace, Pose
from worldcache.core import UNCONDITIONED, Conditioning, Frames, Modality, ModelInfo, Observation
from worldcache.decoded import Decoded
from worldcache.errors import InvalidInput, ModelLoadError, UnknownName
from worldcache.models.base import Row, TokenView, WorldModel
from worldcache.models.calibration import Calibration
from worldcache.models.transfer import to_device, to_host
from worldcache.models.voyager import facts as published
from worldcache.models.voyager.codec import split_pixels, stack_pixels
from worldcache.models.voyager.condition import (
    EXTRA_CHANNELS,
    draw_half,
    encode_condition,
    reference_picture,
)
from worldcache.models.voyager.context import LazyScene, VoyagerCondition, VoyagerContext, export, restore
from worldcache.models.voyager.load import Parts, load_parts, random_parts
from worldcache.models.voyager.scene import FAR, Scene, depth_from_relative, inverse_range
from worldcache.models.voyager.text import TextEmbedding
from worldcache.models.voyager.tokens import SEPARATOR, VoyagerTokens
from worldcache.sampler import FlowMatchSampler, Sampler

MAX_SCHEDULES = 32
"""Schedules that are remembered, by number of steps."""


class VoyagerWorldModel(WorldModel):
    """RGB-D video of 49 frames along a camera's path, from one image with depth.

    Args:
        parts: its networks and what else the folder has, on ``device``.
        device, dtype: of the networks. Latents stay float32.
    """

    goes_on_from_frames: ClassVar[bool] = True

    def __init__(self, parts: Parts, *, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self._dtype, self._parts = device, dtype, parts
        self.transformer = parts.transformer.eval().requires_grad_(False)
        self._facts, self._codec, self._text = parts.facts, parts.codec, parts.text
        self._schedules = lru_cache(maxsize=MAX_SCHEDULES)(self._new_sampler)
        self._views = lru_cache(maxsize=MAX_SCHEDULES)(self._new_view)
        config, channels = self.transformer.config, self._codec.channels
        wanted = 3 * channels + EXTRA_CHANNELS, channels
        if (config.in_channels, config.out_channels) != wanted:
            raise ModelLoadError(
                f"the network has {config.in_channels} channels in and {config.out_channels} out; "
                f"with this VAE they must be {wanted[0]} and {wanted[1]}"
            )
        self.info = self._describe(parts.calibration)

    def _describe(self, calibration: Calibration) -> ModelInfo:
        generated = self._facts.frames - 1
        return ModelInfo(
            id="voyager",
            description=published.DESCRIPTION,
            action_space=CameraPoseActionSpace(published.UNIT),
            modalities=(
                Modality("rgb", 3, "8-bit sRGB", 255.0),
                Modality("depth", 1, published.DEPTH_UNIT, 1.0),
            ),
            resolution=self._facts.resolution,
            fps=self._facts.fps,
            context_frames=1,
            chunk_frames=generated,
            chunk_lengths=(generated,),
            observed_frames=1,
            num_inference_steps=published.NUM_INFERENCE_STEPS,
            guidance_scale=published.GUIDANCE_SCALE,
            starts=(),
            conditioning={"prompt": self._text.prompts, "negative_prompt": self._text.prompts},
            presets=calibration.presets,
            default_preset="balanced",
            calibrations=calibration.policies,
            auto_preset=calibration.auto,
            licence=published.LICENCE,
            notice=published.NOTICE,
        )

    @classmethod
    def load(
        cls, path: str | Path | None, *, device: torch.device, dtype: torch.dtype, offload: bool = False
    ) -> VoyagerWorldModel:
        """Load a folder in the layout of the published repository's ``ckpts``, or of diffusers.

        Args:
            path: the folder; there are no weights that come with the package.
            offload: keep the text encoders and the depth estimator on the host between rollouts.

        Raises:
            ModelLoadError: the message names the file or the key that is missing or wrong.
        """
        if path is None:
            raise ModelLoadError("voyager comes without weights; give the path of a folder that has them")
        parts = load_parts(Path(path), device=device, dtype=dtype, offload=offload)
        return cls(parts, device=device, dtype=dtype)

    @classmethod
    def random(
        cls,
        *,
        device: torch.device,
        dtype: torch.dtype,
        seed: int = 0,
        configs: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> VoyagerWorldModel:
        """A model of the published size with random weights, made on the device, to measure with.

        Args:
            seed: of the weights.
            configs: other arguments of the networks, under ``transformer`` and ``vae``, and of
                ``WorldFacts``, under ``world``.
        """
        parts = random_parts(configs or {}, device=device, dtype=dtype, seed=seed)
        return cls(parts, device=device, dtype=dtype)

    def begin(self, observation: Observation, conditioning: Conditioning = UNCONDITIONED) -> VoyagerContext:
        scene = self._observe(observation)
        image, depth = reference_picture(scene, self._facts.focal)
        pixels = stack_pixels(torch.from_numpy(image)[None], torch.from_numpy(depth)[None])[0, :, 0]
        picture = ((pixels.clamp(-1, 1) + 1) * 127.5).to(torch.uint8).permute(1, 2, 0).numpy()
        prompts = {
            name: given if given is not None else default
            for name, given, default in (
                ("prompt", conditioning.prompt, self._facts.prompt),
                ("negative_prompt", conditioning.negative_prompt, self._facts.negative_prompt),
            )
        }
        prompt, negative = self._text.encode(prompts, picture)
        return VoyagerContext(LazyScene(lambda: scene), prompt, negative)

    def _observe(self, observation: Observation) -> Scene:
        """The newest frame with its depth."""
        if observation.start is not None:
            raise UnknownName("start", observation.start, (), param="observation.start")
        if observation.frames is None or not len(observation.frames):
            raise InvalidInput("give an image in observation.frames", param="observation.frames")
        image, size = observation.frames[-1], self.info.resolution
        if image.shape != (*size, 3):
            message = f"the image must be {size[0]}x{size[1]} pixels high and wide"
            raise InvalidInput(message, param="observation.frames")
        if observation.depth is not None:
            depth = np.asarray(observation.depth[-1], np.float32)
        elif self._parts.estimator is not None:
            depth = self._parts.estimator.estimate(image)
        else:
            raise InvalidInput(
                "voyager needs the depth of the image; send it, or add a model that estimates distances to "
                "the weights as depth_estimator/",
                param="observation.depth",
            )
        if depth.shape != size or not np.isfinite(depth).all() or (depth < 0).any():
            message = f"the depth must be {size[0]}x{size[1]} distances, 0 where they are unknown"
            raise InvalidInput(message, param="observation.depth")
        if not ((depth > 0) & (depth < FAR)).any():
            message = f"the depth must hold distances above 0 and below {FAR:g}"
            raise InvalidInput(message, param="observation.depth")
        return Scene(image, depth)

    def condition(
        self, context: VoyagerContext, actions: Sequence[Pose], generator: torch.Generator
    ) -> VoyagerCondition:
        latents = encode_condition(
            context.scene.get(), actions, self._facts.focal, self._codec, self.device, generator
        )
        return VoyagerCondition(
            latents.reference, latents.channels.to(self._dtype), context.prompt, context.negative
        )

    def latent_shape(self, frames: int) -> tuple[int, ...]:
        height, width = self._facts.resolution
        return (self._codec.channels, frames // 4 + 1, (2 * height + SEPARATOR) // 8, width // 8)

    def initial_latent(self, condition: VoyagerCondition, frames: int, generator: torch.Generator) -> Tensor:
        noise = super().initial_latent(condition, frames, generator)
        share = torch.tensor(published.NOISE_SHARE)  # in float32, as published
        return noise * share + condition.reference * (1 - share)

    def sampler(self, num_steps: int) -> Sampler:
        return self._schedules(num_steps).fresh()

    def _new_sampler(self, num_steps: int) -> FlowMatchSampler:
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(self._parts.scheduler.config)
        levels = torch.linspace(1, 0, num_steps + 1)[:-1]  # rounded to float32 as published
        return FlowMatchSampler(scheduler, num_steps, levels=levels.tolist())

    def batch_key(self, row: Row) -> Hashable:
        return (super().batch_key(row), len(self._prompt(row).mask))

    def evaluate(self, rows: Sequence[Row]) -> Tensor:
        texts = [self._prompt(row) for row in rows]
        velocity: Tensor = self.transformer(
            torch.stack([torch.cat([row.latent.to(self._dtype), row.condition.channels]) for row in rows]),
            to_device(torch.tensor([row.timestep for row in rows]), self.device),
            torch.stack([text.tokens for text in texts]),
            torch.stack([text.mask for text in texts]),
            torch.stack([text.pooled for text in texts]),
        )
        return velocity.float()

    @staticmethod
    def _prompt(row: Row) -> TextEmbedding:
        condition: VoyagerCondition = row.condition
        return condition.negative if row.unconditional else condition.prompt

    def tokens(self, shape: Sequence[int]) -> TokenView:
        return self._views(tuple(shape))

    def _new_view(self, shape: tuple[int, ...]) -> VoyagerTokens:
        return VoyagerTokens(shape, self.transformer.config.patch_size)

    def render(self, latent: Tensor) -> dict[str, Tensor]:
        rgb, depth = split_pixels(self._codec.decode(latent))
        return {"rgb": to_host(rgb.contiguous()), "depth": to_host(depth)}

    def decode(self, latent: Tensor) -> Frames:
        pictures = self.render(latent)
        return {
            "rgb": (pictures["rgb"] * 255).round().to(torch.uint8).numpy(),
            "depth": pictures["depth"].numpy().copy(),
        }

    def advance(
        self, context: VoyagerContext, latent: Tensor, decoded: Decoded, actions: Sequence[Pose]
    ) -> VoyagerContext:
        make = partial(self._last_frame, decoded, context.scene.get(), actions[-1])
        return VoyagerContext(LazyScene(make), context.prompt, context.negative)

    def _last_frame(self, decoded: Decoded, before: Scene, pose: Pose) -> Scene:
        """The last frame of a chunk, its relative depth read as that of the frame that was drawn there."""
        seen = decoded.last()
        first, last = draw_half(before, (pose,), self._facts.focal)
        low, high = inverse_range(last if last.mask.any() else first)
        return Scene(
            seen["rgb"][0],
            depth_from_relative(seen["depth"][0], low, high),
        )

    def export_context(self, context: VoyagerContext) -> dict[str, NDArray[Any]]:
        return export(context)

    def import_context(self, arrays: Mapping[str, NDArray[Any]]) -> VoyagerContext:
        config = self.transformer.config
        widths = (config.text_embed_dim, config.pooled_projection_dim)
        return restore(arrays, self.info.resolution, widths, device=self.device, dtype=self._dtype)

    @property
    def memory_bytes(self) -> int:
        networks = (self.transformer, self._codec.vae)
        weights: int = sum(p.numel() * p.element_size() for network in networks for p in network.parameters())
        estimator = self._parts.estimator
        return weights + self._text.memory_bytes + (estimator.memory_bytes if estimator else 0)

    @torch.inference_mode()
    def warm(self) -> None:
        size, frames = self.info.resolution, self.info.chunk_frames
        rows = np.linspace(1, 2, size[0], dtype=np.float32)[:, None]
        depth = np.broadcast_to(rows, size)
        context = self.begin(Observation(frames=np.zeros((1, *size, 3), np.uint8), depth=depth[None]))
        pose: Pose = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
        generator = torch.Generator().manual_seed(0)
        condition = self.condition(context, (pose,) * frames, generator)
        latent = self.initial_latent(condition, frames, generator)
        self.evaluate([Row(latent, 1000.0, condition, unconditional) for unconditional in (False, True)])
