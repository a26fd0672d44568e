"""A world model of one's own, complete: a two-wheeled robot in an arena, seen from above.

    worldcache.rollout(RobotWorldModel(), actions=[[0.5, 0.1]] * 32, policy="worldcache")

docs/own-model.md explains every method, in the order in which they are called.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor
from worldcache.actions import BoxActionSpace
from worldcache.core import UNCONDITIONED, Conditioning, Frames, Modality, ModelInfo, Observation, Preset
from worldcache.errors import InvalidInput, ModelLoadError, UnknownName
from worldcache.models.base import Row, TokenView, WorldModel
from worldcache.models.transfer import to_device, to_host
from worldcache.policies.base import TokenLayout
from worldcache.sampler import FlowMatchSampler, Sampler

from examples.robot_network import ARENA, BODY, SIZE, RobotNetwork

PATCH = 8  # pixels of a token's side
FPS = 10.0
SLIP = 0.02  # standard deviation of what the wheels do, relative to what they are told
STARTS = {"centre": (0.0, 0.0, 0.0), "corner": (-1.1, -1.1, 0.8)}  # poses


class PatchTokens(TokenView):
    """A token is a patch of one frame in all colours: ``8 * 8`` tokens a frame, each ``3 * 8 * 8`` wide."""

    def __init__(self, frames: int) -> None:
        side = SIZE // PATCH
        self.layout, self.width = TokenLayout(("rgb",), (frames * side**2,)), 3 * PATCH**2
        self.grids = {"rgb": (frames, side, side)}

    def to_tokens(self, output: Tensor) -> Tensor:
        frames, rows, columns = self.grids["rgb"]
        patches = output.reshape(-1, 3, frames, rows, PATCH, columns, PATCH)
        return patches.permute(0, 2, 3, 5, 1, 4, 6).reshape(-1, self.width)

    def from_tokens(self, tokens: Tensor) -> Tensor:
        patches = tokens.reshape(-1, *self.grids["rgb"], 3, PATCH, PATCH)
        return patches.permute(0, 4, 1, 2, 5, 3, 6).flatten(5, 6).flatten(3, 4)


class RobotWorldModel(WorldModel):
    """RGB pictures of a robot that is told how fast to drive and to turn, eight frames a chunk.

    Contexts are poses ``[3]``: where the robot is. Conditions are poses ``[F, 3]``: where it is going to be.
    Latents are the frames ``[3, F, H, W]``, colours from -1 to 1.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device or torch.device("cpu")
        self.network = RobotNetwork().to(self.device)
        self.info = ModelInfo(
            id="robot",
            description="A two-wheeled robot, seen from above; forward in m/s, turn in rad/s to the left.",
            action_space=BoxActionSpace(low=(-0.5, -2.0), high=(1.0, 2.0), names=("forward", "turn")),
            modalities=(Modality("rgb", 3, "8-bit sRGB", 255.0),),
            resolution=(SIZE, SIZE),
            fps=FPS,
            context_frames=1,
            chunk_frames=8,
            num_inference_steps=20,
            starts=tuple(STARTS),
            presets={"none": Preset("none"), "balanced": Preset("worldcache"), "fast": Preset("forecast")},
            default_preset="balanced",
            licence="Apache-2.0",
        )

    @classmethod
    def load(cls, path: str | Path | None, *, device: torch.device, dtype: torch.dtype) -> RobotWorldModel:
        """The robot on ``device``. It has no weights, and computes in float32 whatever ``dtype`` is.

        Raises:
            ModelLoadError: ``path`` names a folder of weights.
        """
        if path is not None:
            raise ModelLoadError(f"the robot has no weights; leave out {path}")
        return cls(device)

    def begin(self, observation: Observation, conditioning: Conditioning = UNCONDITIONED) -> Tensor:
        if observation.start is not None:
            if observation.start not in STARTS:
                raise UnknownName("start", observation.start, STARTS, param="observation.start")
            return to_device(torch.tensor(STARTS[observation.start]), self.device)
        if observation.frames is None or observation.frames.shape[1:] != (SIZE, SIZE, 3):
            raise InvalidInput(f"give a start or frames of {SIZE}x{SIZE} pixels", param="observation.frames")
        picture = torch.from_numpy(observation.frames[-1]).permute(2, 0, 1) / 127.5 - 1
        pose = self.network.locate(to_device(picture, self.device))
        if not pose.isfinite().all():
            raise InvalidInput("the last frame shows no robot", param="observation.frames")
        return pose

    def condition(
        self, context: Tensor, actions: Sequence[Sequence[float]], generator: torch.Generator
    ) -> Tensor:
        slip = 1 + SLIP * torch.randn(len(actions), 2, generator=generator)
        moves = to_device(torch.tensor(actions) * slip / FPS, self.device)
        headings = context[2] + moves[:, 1].cumsum(0)
        places, reach = [context[:2]], ARENA / 2 - BODY
        for move in moves[:, :1] * torch.stack([headings.cos(), headings.sin()], -1):
            places.append((places[-1] + move).clamp(-reach, reach))  # a wall stops it
        return torch.cat([torch.stack(places[1:]), headings[:, None]], -1)

    def latent_shape(self, frames: int) -> tuple[int, ...]:
        return (3, frames, SIZE, SIZE)

    def sampler(self, num_steps: int) -> Sampler:
        return FlowMatchSampler(FlowMatchEulerDiscreteScheduler(), num_steps)

    def tokens(self, shape: Sequence[int]) -> TokenView:
        return PatchTokens(shape[1])

    def evaluate(self, rows: Sequence[Row]) -> Tensor:
        latents = torch.stack([row.latent for row in rows])
        timesteps = to_device(torch.tensor([row.timestep for row in rows]), self.device)
        poses = [row.condition[: 1 if row.unconditional else None].expand_as(row.condition) for row in rows]
        velocity: Tensor = self.network(latents, timesteps, torch.stack(poses))
        return velocity

    def render(self, latent: Tensor) -> dict[str, Tensor]:
        return {"rgb": (to_host(latent).clamp(-1, 1).permute(1, 2, 3, 0) + 1) / 2}

    def decode(self, latent: Tensor) -> Frames:
        return {"rgb": (self.render(latent)["rgb"] * 255).round().to(torch.uint8).numpy()}

    def advance(self, context: Tensor, latent: Tensor, decoded: object, actions: object) -> Tensor:
        return self.network.locate(latent[:, -1])

    @property
    def memory_bytes(self) -> int:
        return sum(buffer.nbytes for buffer in self.network.buffers())
