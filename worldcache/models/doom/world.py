"""The built-in world: the action transformer as a :class:`WorldModel`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from math import prod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from numpy.typing import NDArray
from torch import Tensor, nn

from worldcache.actions import DiscreteActionSpace
from worldcache.core import UNCONDITIONED, Conditioning, Frames, Modality, ModelInfo, Observation
from worldcache.decoded import Decoded
from worldcache.errors import InvalidInput, ModelLoadError, UnknownName
from worldcache.models.base import Row, TokenView, WorldModel
from worldcache.models.calibration import Calibration, read_calibration
from worldcache.models.compiling import compile_network
from worldcache.models.context import ArraySpec, check_arrays
from worldcache.models.doom.transformer import ActionTransformer3DModel
from worldcache.models.graphs import BatchFunction, BatchGraphs, batch_sizes
from worldcache.models.transfer import to_device, to_host
from worldcache.policies.base import TokenLayout
from worldcache.sampler import FlowMatchSampler, Sampler

MAX_SCHEDULES = 32
"""Schedules that are remembered, by number of steps: making one takes longer than a policy's FULL step."""

PRETRAINED = Path(__file__).parent / "pretrained"
"""The weights that ship with the package."""


@dataclass(frozen=True)
class Start:
    """A recorded moment of play.

    Attributes:
        frames: uint8 ``[context, H, W, 4]``: red, green, blue and depth in the world's unit.
        actions: the actions that led to those frames.
    """

    frames: NDArray[np.uint8]
    actions: tuple[int, ...]


@dataclass(frozen=True)
class DoomContext:
    """What a chunk is conditioned on: ``[4, context, H, W]`` in [-1, 1], and the actions so far."""

    frames: Tensor
    actions: tuple[int, ...]


@dataclass(frozen=True)
class DoomCondition:
    """Context frames, and the actions ``[context + chunk]`` of context and chunk."""

    frames: Tensor
    actions: Tensor


class DoomTokens(TokenView):
    """Patches of colour, then patches of depth, padded with zeros to the same width.

    A patch holds its pixels by channel, frame, row and column, so that ``patch`` of them lie side by side
    in either layout. Such a run is what moves: both ways are one gather of runs.
    """

    def __init__(self, transformer: ActionTransformer3DModel, device: torch.device) -> None:
        config, (rows, columns) = transformer.config, transformer.grid
        self._run, self._channels = config.patch, sum(transformer.modality_channels)
        self._size = (config.chunk_frames, config.sample_height, config.sample_width)
        latent = (self._channels, transformer.groups, config.patch_time, rows, config.patch, columns)
        runs = torch.arange(prod(latent)).view(latent).permute(1, 3, 5, 0, 2, 4)
        parts = runs.split(transformer.modality_channels, dim=3)
        colour, depth = (part.flatten(0, 2).flatten(1) for part in parts)
        zero = runs.numel()  # the run behind the last one
        order = torch.cat([colour, F.pad(depth, (0, colour.shape[1] - depth.shape[1]), value=zero)])
        self._order = order.flatten().to(device)
        self._places = self._order.argsort()[:zero]
        self.width = int(colour.shape[1] * self._run)
        self.layout = TokenLayout(("rgb", "depth"), (len(colour), len(depth)))
        self.grids = dict.fromkeys(self.layout.names, (transformer.groups, rows, columns))

    def to_tokens(self, output: Tensor) -> Tensor:
        runs = output.reshape(len(output), -1, self._run)
        runs = torch.cat([runs, runs.new_zeros(len(runs), 1, self._run)], dim=1)
        return runs.index_select(1, self._order).view(-1, self.width)

    def from_tokens(self, tokens: Tensor) -> Tensor:
        runs = tokens.view(-1, len(self._order), self._run)
        return runs.index_select(1, self._places).view(len(runs), self._channels, *self._size)


class DoomWorldModel(WorldModel):
    """RGB-D play of a ViZDoom scenario, four frames a chunk.

    Args:
        transformer: the backbone.
        scheduler: a diffusers flow-matching scheduler; each chunk gets its own copy.
        world: the contents of ``world.json``.
        calibration: presets and calibrated parameters.
        starts: the observations that come with the model.
        device, dtype: of the backbone, which has the dtype already. Latents stay float32.
    """

    offers_modulated_input: ClassVar[bool] = True

    def __init__(
        self,
        transformer: ActionTransformer3DModel,
        scheduler: FlowMatchEulerDiscreteScheduler,
        world: Mapping[str, Any],
        starts: Mapping[str, Start],
        calibration: Calibration,
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.transformer = transformer.to(device).eval().requires_grad_(False)
        self.device, self._dtype = device, dtype
        self._backbone: BatchFunction = partial(_velocity, self.transformer)
        self._warm_sizes: tuple[int, ...] = (1,)
        self._scheduler = scheduler
        self._schedules = lru_cache(maxsize=MAX_SCHEDULES)(self._new_sampler)
        self._starts = starts
        self._depth_max = float(world["depth_max"])
        config = transformer.config
        self._no_action = int(config.num_actions)
        self.info = ModelInfo(
            id=world["id"],
            description=world["description"],
            action_space=DiscreteActionSpace(tuple(world["actions"])),
            modalities=(
                Modality("rgb", 3, "8-bit sRGB", 255.0),
                Modality("depth", 1, world["depth_unit"], self._depth_max),
            ),
            resolution=(config.sample_height, config.sample_width),
            fps=world["fps"],
            context_frames=config.context_frames,
            chunk_frames=config.chunk_frames,
            num_inference_steps=world["num_inference_steps"],
            starts=tuple(starts),
            presets=calibration.presets,
            default_preset=world["default_preset"],
            licence=world["licence"],
            calibrations=calibration.policies,
            auto_preset=calibration.auto,
        )
        self._view = DoomTokens(self.transformer, device)
        self._high = torch.tensor([255.0, 255.0, 255.0, self._depth_max]).view(4, 1, 1, 1)

    @classmethod
    def load(cls, path: str | Path | None, *, device: torch.device, dtype: torch.dtype) -> DoomWorldModel:
        """Load a folder with ``world.json``, ``starts.npz``, ``transformer/`` and ``scheduler/``.

        A ``calibration.json`` may lie beside them.

        Raises:
            ModelLoadError: the message names the file that is missing or wrong.
        """
        folder = Path(path) if path is not None else PRETRAINED
        for needed in ("world.json", "starts.npz", "transformer/config.json", "scheduler"):
            if not (folder / needed).exists():
                raise ModelLoadError(f"{folder / needed} is missing; train a model or give another path")
        try:
            world = json.loads((folder / "world.json").read_text())
            starts = load_starts(folder / "starts.npz")
            transformer = ActionTransformer3DModel.from_pretrained(
                folder / "transformer", torch_dtype=dtype, low_cpu_mem_usage=False
            )
            scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler")
            calibration = read_calibration(folder, world["presets"])
            return cls(transformer, scheduler, world, starts, calibration, device=device, dtype=dtype)
        except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise ModelLoadError(f"{folder} cannot be loaded: {error}") from error

    def begin(self, observation: Observation, conditioning: Conditioning = UNCONDITIONED) -> DoomContext:
        if observation.start is not None:
            if observation.start not in self._starts:
                raise UnknownName("start", observation.start, self._starts, param="observation.start")
            start = self._starts[observation.start]
            frames = torch.from_numpy(start.frames).permute(3, 0, 1, 2).float()
            return DoomContext(self._scale(frames), start.actions)
        if observation.frames is None or not len(observation.frames):
            raise InvalidInput("give a start or at least one frame", param="observation")
        rgb = torch.from_numpy(observation.frames).permute(3, 0, 1, 2).float()
        if observation.depth is None:
            depth = torch.full_like(rgb[:1], self._depth_max / 2)
        else:
            depth = torch.from_numpy(observation.depth)[None]
        if rgb.shape[1:] != depth.shape[1:] or rgb.shape[2:] != self.info.resolution:
            raise InvalidInput(
                f"frames must be {self.info.resolution[0]}x{self.info.resolution[1]} pixels high and wide, "
                "with one depth map for each",
                param="observation.frames",
            )
        known = torch.cat([rgb, depth])[:, -self.info.context_frames :]
        padding = known[:, :1].expand(-1, self.info.context_frames - known.shape[1], -1, -1)
        return DoomContext(self._scale(torch.cat([padding, known], 1)), (0,) * self.info.context_frames)

    def condition(
        self, context: DoomContext, actions: Sequence[int], generator: torch.Generator
    ) -> DoomCondition:
        taken = torch.tensor((*context.actions, *actions))
        return DoomCondition(context.frames, to_device(taken, self.device))

    def latent_shape(self, frames: int) -> tuple[int, ...]:
        return (4, frames, *self.info.resolution)

    def sampler(self, num_steps: int) -> Sampler:
        return self._schedules(num_steps).fresh()

    def _new_sampler(self, num_steps: int) -> FlowMatchSampler:
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(self._scheduler.config)
        return FlowMatchSampler(scheduler, num_steps)

    def evaluate(self, rows: Sequence[Row]) -> Tensor:
        return self._backbone(*self._batch(rows))

    def optimise(self, *, compile: bool = False, cuda_graphs: bool = False, max_batch: int = 8) -> None:
        if cuda_graphs and self.device.type != "cuda":
            raise InvalidInput(
                f"CUDA graphs need a CUDA device, not {self.device}; leave cuda_graphs off or choose one",
                param="cuda_graphs",
                code="not_supported",
            )
        network = compile_network(self.transformer) if compile else self.transformer
        self._backbone = partial(_velocity, network)
        self._warm_sizes = tuple(range(1, max_batch + 1)) if compile else (1,)
        if cuda_graphs:
            self._backbone = BatchGraphs(self._backbone, batch_sizes(max_batch))
            self._warm_sizes = self._backbone.sizes

    def modulated_input(self, row: Row) -> Tensor:
        modulated: Tensor = self.transformer.modulated_input(*self._batch([row]))[0]
        return modulated.float()

    def _batch(self, rows: Sequence[Row]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Latents, timesteps, context frames and actions of the rows."""
        no_action = torch.full_like(rows[0].condition.actions, self._no_action)
        return (
            torch.stack([row.latent for row in rows]).to(self._dtype),
            to_device(torch.tensor([row.timestep for row in rows]), self.device),
            torch.stack([row.condition.frames for row in rows]).to(self._dtype),
            torch.stack([no_action if row.unconditional else row.condition.actions for row in rows]),
        )

    def tokens(self, shape: Sequence[int]) -> TokenView:
        return self._view

    def render(self, latent: Tensor) -> dict[str, Tensor]:
        pictures = ((to_host(latent.clamp(-1, 1).float()) + 1) / 2).permute(1, 2, 3, 0).contiguous()
        return {"rgb": pictures[..., :3], "depth": pictures[..., 3]}

    def decode(self, latent: Tensor) -> Frames:
        pictures = self.render(latent)
        return {
            "rgb": (pictures["rgb"] * 255.0).round().to(torch.uint8).numpy(),
            "depth": (pictures["depth"] * self._depth_max).numpy(),
        }

    def advance(
        self, context: DoomContext, latent: Tensor, decoded: Decoded, actions: Sequence[int]
    ) -> DoomContext:
        keep = self.info.context_frames
        frames = torch.cat([context.frames, latent.clamp(-1, 1)], dim=1)[:, -keep:]
        return DoomContext(frames.contiguous(), (*context.actions, *actions)[-keep:])

    def export_context(self, context: DoomContext) -> dict[str, NDArray[Any]]:
        return {
            "frames": to_host(context.frames).numpy().copy(),
            "actions": np.array(context.actions, np.int64),
        }

    def import_context(self, arrays: Mapping[str, NDArray[Any]]) -> DoomContext:
        size = self.info.context_frames
        check_arrays(
            arrays,
            {
                "frames": ArraySpec(np.dtype(np.float32), (4, size, *self.info.resolution), -1, 1),
                "actions": ArraySpec(np.dtype(np.int64), (size,), 0, self._no_action - 1),
            },
        )
        frames = torch.from_numpy(arrays["frames"].copy())
        return DoomContext(to_device(frames, self.device), tuple(arrays["actions"].tolist()))

    @property
    def memory_bytes(self) -> int:
        return sum(p.numel() * p.element_size() for p in self.transformer.parameters())

    @torch.inference_mode()
    def warm(self) -> None:
        context = self.begin(Observation(start=self.info.starts[0]))
        size, generator = self.info.chunk_frames, torch.Generator().manual_seed(0)
        condition = self.condition(context, (0,) * size, generator)
        latent = self.initial_latent(condition, size, generator)
        for size in reversed(self._warm_sizes):
            for _ in range(2):
                self.evaluate([Row(latent, 1000.0, condition)] * size)

    def _scale(self, frames: Tensor) -> Tensor:
        """``[4, T, H, W]`` in pixel and depth units to [-1, 1] on the device."""
        return to_device((frames / self._high * 2 - 1).clamp(-1, 1), self.device)


def _velocity(
    network: nn.Module, noisy: Tensor, timesteps: Tensor, context: Tensor, actions: Tensor
) -> Tensor:
    """The backbone's output as the scheduler consumes it, float32."""
    velocity: Tensor = network(noisy, timesteps, context, actions, return_dict=False)[0]
    return velocity.float()


def load_starts(path: Path) -> dict[str, Start]:
    """Read ``starts.npz``: for every start an array of frames and one of actions."""
    with np.load(path) as data:
        names = [key.removesuffix(".frames") for key in data.files if key.endswith(".frames")]
        return {
            name: Start(data[f"{name}.frames"], tuple(int(a) for a in data[f"{name}.actions"]))
            for name in names
        }


def save_starts(path: Path, starts: Mapping[str, Start]) -> None:
    """Write what :func:`load_starts` reads."""
    arrays: dict[str, NDArray[Any]] = {}
    for name, start in starts.items():
        arrays[f"{name}.frames"] = start.frames
        arrays[f"{name}.actions"] = np.array(start.actions, np.uint8)
    np.savez_compressed(path, allow_pickle=False, **arrays)
