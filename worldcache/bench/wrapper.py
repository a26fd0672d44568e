"""A model as the benchmark sees it: pictures that are not rounded, and a sampler of its choice.

Holds no state: whatever it does not change it hands on to the model that it wraps.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from worldcache.core import UNCONDITIONED, Conditioning, Frames, Observation
from worldcache.decoded import Decoded
from worldcache.models.base import Row, TokenView, WorldModel
from worldcache.sampler import Sampler


class BenchWorldModel(WorldModel):
    """Delegates to ``inner``; frames are its pictures, float32 from 0 to 1 in every modality.

    Rounding to 8 bits would hide every difference beyond about 58 dB.

    Args:
        inner: the model.
        make_sampler: the sampler for a number of steps; the model's own if left out.
    """

    def __init__(self, inner: WorldModel, make_sampler: Callable[[int], Sampler] | None = None) -> None:
        self.inner = inner
        self.info, self.device = inner.info, inner.device
        self._make_sampler = make_sampler or inner.sampler

    @property
    def offers_modulated_input(self) -> bool:  # type: ignore[override]
        return self.inner.offers_modulated_input

    def begin(self, observation: Observation, conditioning: Conditioning = UNCONDITIONED) -> Any:
        return self.inner.begin(observation, conditioning)

    def condition(self, context: Any, actions: Sequence[Any], generator: torch.Generator) -> Any:
        return self.inner.condition(context, actions, generator)

    def latent_shape(self, frames: int) -> tuple[int, ...]:
        return self.inner.latent_shape(frames)

    def initial_latent(self, condition: Any, frames: int, generator: torch.Generator) -> Tensor:
        return self.inner.initial_latent(condition, frames, generator)

    def guidance(self, scale: float, sampler: Sampler) -> tuple[float, ...]:
        return self.inner.guidance(scale, sampler)

    def sampler(self, num_steps: int) -> Sampler:
        return self._make_sampler(num_steps)

    def batch_key(self, row: Row) -> Hashable:
        return self.inner.batch_key(row)

    def evaluate(self, rows: Sequence[Row]) -> Tensor:
        return self.inner.evaluate(rows)

    def modulated_input(self, row: Row) -> Tensor:
        return self.inner.modulated_input(row)

    def tokens(self, shape: Sequence[int]) -> TokenView:
        return self.inner.tokens(shape)

    def render(self, latent: Tensor) -> dict[str, Tensor]:
        return self.inner.render(latent)

    def decode(self, latent: Tensor) -> Frames:
        return {name: picture.numpy() for name, picture in self.render(latent).items()}

    def advance(self, context: Any, latent: Tensor, decoded: Decoded, actions: Sequence[Any]) -> Any:
        as_shown = Decoded(partial(self.inner.decode, latent))  # ours are not rounded
        return self.inner.advance(context, latent, as_shown, actions)

    @property
    def memory_bytes(self) -> int:
        return self.inner.memory_bytes

    def warm(self) -> None:
        self.inner.warm()
