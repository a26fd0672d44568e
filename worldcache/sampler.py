"""One chunk's walk through the noise levels, on top of a diffusers scheduler.

A sampler is made for one chunk and dropped with it. Everything a step needs on the host
(timesteps, noise levels) is read once, at the start.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from worldcache.core import Prediction


class Sampler(Protocol):
    """What the denoise loop needs of a scheduler.

    Attributes:
        timesteps: the timestep of each step.
        sigmas: the noise level of each step, falling.
        alphas: the signal level of each step.
        prediction: what outputs are: ``flow`` for noise minus data, ``v`` for v-prediction,
            ``epsilon`` for noise.
        deltas: if a step is ``latent + delta * output``, the delta of each; then outputs and latents may
            as well be tokens, and several steps may be taken at once. ``None`` for any other step.
    """

    timesteps: tuple[float, ...]
    sigmas: tuple[float, ...]
    alphas: tuple[float, ...]
    prediction: Prediction
    deltas: tuple[float, ...] | None

    def step(self, index: int, output: Tensor, latent: Tensor, generator: torch.Generator) -> Tensor:
        """The latent after step ``index``, given the (guided) output at ``latent``."""


class FlowMatchSampler:
    """Drives a diffusers flow-matching scheduler: ``x = (1 - sigma) x0 + sigma noise``.

    The noise levels fall evenly from 1 to 1/num_steps before the scheduler's own shift.

    Args:
        scheduler: a ``FlowMatchEulerDiscreteScheduler`` of this chunk's own; its step counter is set to 0.
        num_steps: denoise steps, at least 1.
        own_levels: whether the levels are those that the scheduler chooses by itself, from its largest to
            its smallest.
        levels: before the shift, for a model that rounds them in its own way.
    """

    def __init__(
        self,
        scheduler: Any,
        num_steps: int,
        *,
        own_levels: bool = False,
        levels: Sequence[float] | None = None,
    ) -> None:
        if own_levels:
            scheduler.set_timesteps(num_steps)
        else:
            even = np.linspace(1.0, 0.0, num_steps + 1)[:-1].tolist()
            scheduler.set_timesteps(sigmas=even if levels is None else [*levels])
        scheduler.set_begin_index(0)
        self.prediction: Prediction = "flow"
        self._scheduler = scheduler
        self.timesteps: tuple[float, ...] = tuple(scheduler.timesteps.tolist())
        self.sigmas: tuple[float, ...] = tuple(scheduler.sigmas.tolist()[:num_steps])
        self.alphas: tuple[float, ...] = tuple(1 - sigma for sigma in self.sigmas)
        shifted = scheduler.sigmas.tolist()
        euler = not scheduler.config.stochastic_sampling
        self.deltas = tuple(after - before for before, after in pairwise(shifted)) if euler else None

    def fresh(self) -> FlowMatchSampler:
        """Another one with the same schedule, for another chunk; of one that has taken no step."""
        other = copy(self)
        other._scheduler = copy(self._scheduler)
        return other

    def step(self, index: int, output: Tensor, latent: Tensor, generator: torch.Generator) -> Tensor:
        step: Tensor = self._scheduler.step(
            output, self._scheduler.timesteps[index], latent, generator=generator, return_dict=False
        )[0]
        return step


class CogVideoXDPMSampler:
    """CogVideoX's stochastic second-order multistep solver, for a model that predicts v.

    It takes the steps of a diffusers ``CogVideoXDPMScheduler``, and its draws: one noise a step, and a
    second one, which is the one that counts, where the step before is taken into account.

    Source: SDE-DPM-Solver++(2M), arXiv 2211.01095.

    Args:
        scheduler: of this sampler's own; its timesteps are set, and everything is read once.
        num_steps: denoise steps, at least 1.
    """

    prediction: Prediction = "v"
    deltas: tuple[float, ...] | None = None

    def __init__(self, scheduler: Any, num_steps: int) -> None:
        scheduler.set_timesteps(num_steps)
        steps = scheduler.timesteps[:num_steps]
        signal = scheduler.alphas_cumprod.double()
        now, last = signal[steps], signal.new_tensor(float(scheduler.final_alpha_cumprod))
        ahead = steps - scheduler.config.num_train_timesteps // num_steps
        after = torch.where(ahead >= 0, signal[ahead.clamp(min=0)], last)
        level = _half_log_snr(now)
        stride = _half_log_snr(after) - level
        before = stride.new_full((1,), float("inf"))  # there is no step before the first
        ratio = torch.cat([before, level[1:] - level[:-1]]) / stride
        older = torch.where(ahead >= 0, 1 / (2 * ratio), 0.0)
        self.timesteps: tuple[float, ...] = tuple(map(float, steps.tolist()))
        self.sigmas: tuple[float, ...] = tuple((1 - now).sqrt().tolist())
        self.alphas: tuple[float, ...] = tuple(now.sqrt().tolist())
        self._kept = (((1 - after) / (1 - now)).sqrt() * (-stride).exp()).tolist()
        self._moved = (-(-2 * stride).expm1() * after.sqrt()).tolist()
        self._noise = ((1 - after).sqrt() * (1 - (-2 * stride).exp()).sqrt()).tolist()
        self._older: list[float] = older.tolist()
        self._draws = [2 if index and step >= 0 else 1 for index, step in enumerate(ahead.tolist())]
        self._clean: Tensor | None = None

    def fresh(self) -> CogVideoXDPMSampler:
        """Another one with the same schedule, for another chunk; of one that has taken no step."""
        return copy(self)

    def step(self, index: int, output: Tensor, latent: Tensor, generator: torch.Generator) -> Tensor:
        clean = self.alphas[index] * latent - self.sigmas[index] * output
        target = clean
        if self._draws[index] == 2:
            assert self._clean is not None, "steps are taken in order"
            target = clean + self._older[index] * (clean - self._clean)
        self._clean = clean
        noise = [self._draw(latent, generator) for _ in range(self._draws[index])][-1]
        moved: Tensor = self._kept[index] * latent + self._moved[index] * target
        return moved.add_(noise.to(latent.device, non_blocking=True), alpha=self._noise[index])

    def _draw(self, latent: Tensor, generator: torch.Generator) -> Tensor:
        return torch.randn(latent.shape, generator=generator, pin_memory=latent.is_cuda)


def _half_log_snr(signal: Tensor) -> Tensor:
    """``log(alpha / sigma)`` of squared signal levels; infinite at both ends."""
    return (signal / (1 - signal)).sqrt().log()


def chunk_generator(seed: int, first_frame: int) -> torch.Generator:
    """The CPU generator of the chunk that begins at frame ``first_frame`` of a rollout with ``seed``.

    It depends on nothing else, so that a rollout, a session, a fork and a resumed rollout agree.
    """
    mixed = (seed * 0x9E3779B97F4A7C15 + first_frame * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) % 2**63
    return torch.Generator().manual_seed(mixed)
