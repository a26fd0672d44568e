"""A world model small enough to compute by hand.

Its backbone returns, in every pixel, ``gain * timestep / 1000 + action of the first frame`` (0 for
guidance's second branch), so that a rollout is arithmetic on one number.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from numpy.typing import NDArray
from torch import Tensor

from worldcache.actions import DiscreteActionSpace
from worldcache.core import UNCONDITIONED, Conditioning, Frames, Modality, ModelInfo, Observation, Preset
from worldcache.decoded import Decoded
from worldcache.errors import InvalidInput, UnknownName
from worldcache.models.base import Row, TokenView, WorldModel
from worldcache.models.context import ArraySpec, check_arrays
from worldcache.policies.base import TokenLayout
from worldcache.sampler import FlowMatchSampler, Sampler

SIZE = (48, 64)
CHUNK = 4


class ToyTokens(TokenView):
    """A token is a channel of a frame."""

    def __init__(self, frames: int, grids: Mapping[str, tuple[int, int, int]]) -> None:
        self.grids = grids
        self.layout, self.width = TokenLayout(("rgb", "depth"), (3 * frames, frames)), SIZE[0] * SIZE[1]

    def to_tokens(self, output: Tensor) -> Tensor:
        return output.reshape(-1, self.width)

    def from_tokens(self, tokens: Tensor) -> Tensor:
        return tokens.view(-1, 4, self.layout.counts[1], *SIZE)


@dataclass
class ToyWorldModel(WorldModel):
    """RGB-D model ``toy``. Its contexts are the latest actions, as an array.

    Args:
        delay: seconds that every backbone call takes.
        gain: how much the output changes with the noise level.
        before_evaluate: called with the rows of every backbone call; may raise.
        grids: where it says that its tokens lie.
    """

    delay: float = 0.0
    gain: float = 1.0
    before_evaluate: Callable[[Sequence[Row]], None] = lambda rows: None
    batches: list[int] = field(default_factory=list)
    grids: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    offers_modulated_input: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.device = torch.device("cpu")
        self.info = ModelInfo(
            id="toy",
            description="a model for tests",
            action_space=DiscreteActionSpace(("NOOP", "MOVE_LEFT", "MOVE_RIGHT", "ATTACK")),
            modalities=(Modality("rgb", 3, "8-bit sRGB", 255.0), Modality("depth", 1, "metres", 64.0)),
            resolution=SIZE,
            fps=17.5,
            context_frames=4,
            chunk_frames=CHUNK,
            num_inference_steps=20,
            starts=("centre",),
            presets={
                "none": Preset("none"),
                "quality": Preset("interval", {"interval": 2}),
                "balanced": Preset("worldcache"),
                "fast": Preset("interval", {"interval": 5}),
            },
            default_preset="balanced",
            licence="Apache-2.0",
        )

    def begin(
        self, observation: Observation, conditioning: Conditioning = UNCONDITIONED
    ) -> NDArray[np.int64]:
        if observation.start is not None and observation.start not in self.info.starts:
            raise UnknownName("start", observation.start, self.info.starts, param="observation.start")
        if observation.start is None and observation.frames is None:
            raise InvalidInput("give a start or at least one frame", param="observation")
        return np.empty(0, np.int64)

    def condition(
        self, context: NDArray[np.int64], actions: Sequence[Any], generator: torch.Generator
    ) -> tuple[int, ...]:
        return tuple(actions)

    def latent_shape(self, frames: int) -> tuple[int, ...]:
        return (4, frames, *SIZE)

    def sampler(self, num_steps: int) -> Sampler:
        return FlowMatchSampler(FlowMatchEulerDiscreteScheduler(), num_steps)

    def evaluate(self, rows: Sequence[Row]) -> Tensor:
        self.batches.append(len(rows))
        self.before_evaluate(rows)
        time.sleep(self.delay)
        values = [
            self.gain * row.timestep / 1000 + (0 if row.unconditional else row.condition[0]) for row in rows
        ]
        return torch.tensor(values).view(-1, 1, 1, 1, 1).expand(-1, *rows[0].latent.shape).clone()

    def modulated_input(self, row: Row) -> Tensor:
        """The latent plus the noise level, as a hand can work out."""
        return row.latent + row.timestep / 1000

    def tokens(self, shape: Sequence[int]) -> TokenView:
        return ToyTokens(shape[1], self.grids)

    def render(self, latent: Tensor) -> dict[str, Tensor]:
        pictures = ((latent.clamp(-1, 1) + 1) / 2).permute(1, 2, 3, 0).contiguous()
        return {"rgb": pictures[..., :3], "depth": pictures[..., 3]}

    def decode(self, latent: Tensor) -> Frames:
        pictures = self.render(latent)
        return {
            "rgb": (pictures["rgb"] * 255).round().to(torch.uint8).numpy(),
            "depth": pictures["depth"].numpy() * 64.0,
        }

    def advance(
        self, context: NDArray[np.int64], latent: Tensor, decoded: Decoded, actions: Sequence[Any]
    ) -> NDArray[np.int64]:
        return np.array([*context, *actions][-self.info.context_frames :], np.int64)

    def export_context(self, context: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        padded = (*context, *(-1,) * (CHUNK - len(context)))
        return {"actions": np.array(padded, np.int64)}

    def import_context(self, arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.int64]:
        check_arrays(arrays, {"actions": ArraySpec(np.dtype(np.int64), (CHUNK,), -1, 3)})
        actions: NDArray[np.int64] = arrays["actions"]
        return actions[actions >= 0]

    @property
    def memory_bytes(self) -> int:
        return 0
