"""The noise levels of a diffusers scheduler, as policies are told of them.

Knows nothing of steps or of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from worldcache.core import Prediction
from worldcache.errors import InvalidInput


@dataclass(frozen=True)
class NoiseLevels:
    """How much noise and how much signal is in the latent before each step.

    Attributes:
        sigmas: noise level of each step, falling.
        alphas: signal level of each step.
        prediction: what outputs are.
    """

    sigmas: tuple[float, ...]
    alphas: tuple[float, ...]
    prediction: Prediction = "flow"

    def __len__(self) -> int:
        return len(self.sigmas)

    def since(self, first: int) -> NoiseLevels:
        """Those of the steps from ``first`` on."""
        return NoiseLevels(self.sigmas[first:], self.alphas[first:], self.prediction)


def noise_levels(scheduler: Any) -> NoiseLevels:
    """One level per entry of ``scheduler.timesteps``. Reads the timesteps to the host.

    Flow matching has ``alpha = 1 - sigma``. Schedulers that count noise in units of the signal have
    their sigmas scaled so that ``alpha^2 + sigma^2 = 1``, and those with ``alphas_cumprod`` alone are
    looked up by timestep.

    Raises:
        InvalidInput: the scheduler says nothing of its noise levels; ``param`` is ``scheduler``.
    """
    count = len(scheduler.timesteps)
    sigmas = getattr(scheduler, "sigmas", None)
    cumulated = getattr(scheduler, "alphas_cumprod", None)
    if sigmas is not None and len(sigmas) >= count:
        levels = torch.as_tensor(sigmas).double()[:count]
        if _is_flow(scheduler, levels, cumulated):
            inverted = scheduler.config.get("invert_sigmas", False)
            levels = 1 - levels if inverted else levels
            return NoiseLevels(_floats(levels), _floats(1 - levels))
        alphas = (1 + levels**2).rsqrt()
        return NoiseLevels(_floats(levels * alphas), _floats(alphas), _prediction(scheduler))
    if cumulated is not None:
        timesteps = torch.as_tensor(scheduler.timesteps).cpu().long()
        signal = torch.as_tensor(cumulated).cpu().double()[timesteps]
        return NoiseLevels(_floats((1 - signal).sqrt()), _floats(signal.sqrt()), _prediction(scheduler))
    raise InvalidInput(
        f"{type(scheduler).__name__} has neither sigmas nor alphas_cumprod; "
        "go through the steps with worldcache.steps(transformer, sigmas)",
        param="scheduler",
        code="not_supported",
    )


def _prediction(scheduler: Any) -> Prediction:
    """What outputs are where no flow is matched; ``flow``, which then fits no policy, for what is unknown."""
    kinds: dict[str, Prediction] = {"v_prediction": "v", "epsilon": "epsilon"}
    return kinds.get(scheduler.config.get("prediction_type", "epsilon"), "flow")


def _is_flow(scheduler: Any, sigmas: torch.Tensor, cumulated: object) -> bool:
    config = scheduler.config
    if config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction":
        return True
    return cumulated is None and bool((sigmas <= 1).all())


def _floats(levels: torch.Tensor) -> tuple[float, ...]:
    values: Sequence[float] = levels.tolist()
    return tuple(values)
