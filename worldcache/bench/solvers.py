"""Samplers that the benchmark puts in the place of a model's own.

All walk flow-matching noise levels ``sigma = shift s / (1 + (shift - 1) s)`` with s falling evenly from 1,
so that solvers differ in nothing but how they step.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldcache.core import Prediction
from worldcache.errors import UnknownName
from worldcache.models.base import WorldModel
from worldcache.sampler import FlowMatchSampler, Sampler

EULER, UNIPC, DPM = "euler", "unipc", "dpm++"
SOLVERS = (EULER, UNIPC, DPM)

FIRST_SIGMA_GAP = 1e-6
"""Kept between the first noise level and 1, where the log-SNR of the multistep solvers is infinite."""


class MultistepSampler:
    """Drives diffusers' UniPC or DPM-Solver++ (both of order 2) on flow-matching noise levels.

    Args:
        scheduler: a scheduler of this chunk's own, made for flow prediction.
        sigmas: the noise level of each step, falling from 1.
    """

    def __init__(self, scheduler: Any, sigmas: tuple[float, ...]) -> None:
        scheduler.set_timesteps(len(sigmas))
        first = min(sigmas[0], 1.0 - FIRST_SIGMA_GAP)
        scheduler.sigmas = torch.tensor([first, *sigmas[1:], 0.0], dtype=torch.float64)
        scheduler.timesteps = scheduler.sigmas[:-1] * 1000
        scheduler.set_begin_index(0)
        self._scheduler = scheduler
        self.sigmas = sigmas
        self.alphas = tuple(1 - sigma for sigma in sigmas)
        self.timesteps = tuple(1000 * sigma for sigma in sigmas)
        self.deltas: tuple[float, ...] | None = None
        self.prediction: Prediction = "flow"

    def step(self, index: int, output: Tensor, latent: Tensor, generator: torch.Generator) -> Tensor:
        timestep = self._scheduler.timesteps[index]
        step: Tensor = self._scheduler.step(output, timestep, latent, return_dict=False)[0]
        return step.float()


def make_sampler(solver: str, num_steps: int, shift: float) -> Sampler:
    """A fresh sampler for one chunk.

    Raises:
        UnknownName: no solver has this name.
    """
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
    from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

    if solver == EULER:
        return FlowMatchSampler(FlowMatchEulerDiscreteScheduler(shift=shift), num_steps)
    even = np.linspace(1.0, 0.0, num_steps + 1)[:-1]
    sigmas = tuple((shift * even / (1 + (shift - 1) * even)).tolist())
    options = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": shift}
    if solver == UNIPC:
        return MultistepSampler(UniPCMultistepScheduler(**options), sigmas)
    if solver == DPM:
        return MultistepSampler(DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", **options), sigmas)
    raise UnknownName("solver", solver, SOLVERS)


def flow_shift(model: WorldModel) -> float:
    """The shift of a model's own noise levels, read from the middle one of two: s = 1/2."""
    sigma = model.sampler(2).sigmas[1]
    return sigma / (1 - sigma)
