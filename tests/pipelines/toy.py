"""A transformer without CacheMixin, whose outputs follow from its arguments."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn


class ToyTransformer(nn.Module):
    """``[B, N, C]`` in and out: ``scale * (sin(latent) + timestep)``."""

    def __init__(self) -> None:
        super().__init__()
        self.config = {"in_channels": 4}
        self.forwards = 0
        self.fail_at: int | None = None

    def forward(
        self, hidden_states: Tensor, timestep: Tensor | float, scale: float = 1.0, extra: Any = None
    ) -> tuple[Tensor, ...]:
        self.forwards += 1
        if self.forwards == self.fail_at:
            raise RuntimeError("the device is gone")
        return (scale * (hidden_states.sin() + timestep),)


class ToyPipe:
    """As much of a pipeline as the cache looks at."""

    def __init__(self, components: dict[str, nn.Module], scheduler: Any) -> None:
        self.components = components
        self.scheduler = scheduler
        self._current_timestep: Any = None


def toy_pipe(transformer: nn.Module, scheduler: Any | None = None) -> ToyPipe:
    scheduler = FlowMatchEulerDiscreteScheduler() if scheduler is None else scheduler
    return ToyPipe({"transformer": transformer, "vae": nn.Identity()}, scheduler)


def latent() -> Tensor:
    return torch.linspace(-2, 2, 24).reshape(1, 6, 4)


def sample(pipe: Any, steps: int = 10, scales: tuple[float, ...] = (1.0,)) -> Tensor:
    """Denoise, with one call of the transformer per scale in every step, none of them in a context."""
    pipe.scheduler.set_timesteps(steps)
    x = latent()
    for t in pipe.scheduler.timesteps:
        outputs = [pipe.components["transformer"](x, t / 1000, scale)[0] for scale in scales]
        x = pipe.scheduler.step(torch.stack(outputs).mean(dim=0), t, x, return_dict=False)[0]
    return x
