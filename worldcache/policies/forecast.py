"""``forecast``: extrapolate the data prediction along the log signal-to-noise ratio, and take errors back.

Source: ours. Extrapolating x̂0 in log-SNR is what multistep solvers do (DPM-Solver++, arXiv 2211.01095),
and taking errors back once the next output is known is the corrector of UniPC (arXiv 2302.04867); here
both serve to repeat the run of a given sampler on its own fine schedule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import ClassVar, Self

import torch
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError
from torch import Tensor

from worldcache.errors import InvalidInput
from worldcache.policies.base import History, Miss, PolicyConfig, PolicyState, Schedule, StepInput
from worldcache.policies.path import correction_terms, log_snr, place, shrink, streak_terms
from worldcache.policies.planned import PlannedPolicy
from worldcache.policies.state import relative_rms

OPENING = 8
"""With a tolerance, 1/8 of the schedule lies between the first FULL steps: the latent is nearly all noise."""


class ForecastConfig(PolicyConfig):
    """Parameters of ``forecast``: a budget of FULL steps, or a tolerance."""

    full_steps: int | None = Field(
        default=None,
        ge=1,
        description="Compute exactly this many steps of every chunk (all, if it has fewer).",
    )
    tolerance: float = Field(
        default=0.0005,
        gt=0,
        description="Without full_steps: expected error that one streak may add to the latent, relative to "
        "the size of the model's output.",
    )
    spacing: float = Field(
        default=2.5,
        ge=1,
        le=8,
        description="How a budget crowds towards the end: FULL steps lie evenly in sigma^(1/spacing).",
    )
    correct: bool = Field(
        default=True, description="Take the error of a streak back once the next FULL output shows it."
    )

    @model_validator(mode="after")
    def _one_goal(self) -> Self:
        if self.full_steps is not None and "tolerance" in self.model_fields_set:
            raise PydanticCustomError("one_goal", "give full_steps or tolerance, not both")
        return self


@dataclass
class ForecastState(PolicyState):
    """What ``forecast`` remembers besides the common state.

    Attributes:
        coordinate: log-SNR of each step.
        budget: the FULL steps of a budget; empty for a tolerance.
        slope: S, change of the data prediction per unit of log-SNR, ``[N, d]``; ``None`` at first.
        correction: what the latent lacks, by the newest FULL output, ``[N, d]``; flow matching alone.
        data: D0, the data prediction of the newest FULL output, ``[N, d]``; v-prediction alone.
        reached: log-SNR between the two newest FULL steps.
    """

    coordinate: tuple[float, ...] = ()
    budget: tuple[int, ...] = ()
    slope: Tensor | None = None
    correction: Tensor | None = None
    data: Tensor | None = None
    reached: tuple[float, float] = (0.0, 0.0)


class ForecastPolicy(PlannedPolicy[ForecastConfig, ForecastState]):
    """Linear in log-SNR on the data prediction, corrected, with a budget or a tolerance.

    With ``D = x - sigma y`` and ``u = log((1 - sigma) / sigma)``, ``S = (D0 - D1) / (u0 - u1)``. A cached
    step predicts ``D0 + (u - u0) S``. Under Euler the latent of a streak is itself a combination of what
    is known at its FULL step, so the output comes without a look at the latent, as
    ``y0 + A S + B delta`` with two numbers A and B per step: a cached step is one fused pass, and a
    constant output is predicted exactly.

    ``delta`` is the corrector: when the next FULL output D arrives, the streak is gone through again with
    interpolation between D0 and D in place of extrapolation. What the latent lacks by that, the next
    predicted step adds.

    With v-prediction ``D = alpha x - sigma y``, with noise prediction ``D = (x - sigma y) / alpha``, and
    ``u = log(alpha / sigma)``. Such samplers add noise or are no Euler steps, so that the latent has to be
    looked at: a cached step returns the output that stands for ``D0 + (u - u0) S``, and nothing is corrected.

    A budget places its steps evenly in ``sigma^(1/spacing)``. With a tolerance, the error that the
    newest FULL output showed in the extrapolation to it, per modality, is scaled by
    ``(u - u0)(u - u1)``, the remainder of linear extrapolation, and a streak goes on while the sum of it,
    times the width of each step in sigma, stays within the tolerance. The first and the last
    step are FULL. The drift of a cached step is the error expected of its streak so far.
    """

    name: ClassVar[str] = "forecast"
    description: ClassVar[str] = (
        "Extrapolates the predicted data along the signal-to-noise ratio, corrects itself at every computed "
        "step, and computes a given number of steps or as many as a tolerance asks for."
    )
    source: ClassVar[str] = "WorldCache project"
    config_type: ClassVar[type[PolicyConfig]] = ForecastConfig

    @property
    def reach(self) -> int:
        return 3

    @property
    def kept_outputs(self) -> int:
        return 3

    def reset(self, schedule: Schedule) -> ForecastState:
        """A fresh state.

        Raises:
            InvalidInput: the schedule is neither one of flow matching nor one that keeps the variance, or
                its noise levels do not fall.
        """
        sigmas, power = schedule.sigmas, 1 if schedule.prediction == "flow" else 2
        falling = all(a > b for a, b in pairwise(sigmas))
        whole = all(abs(a**power + s**power - 1) < 1e-4 for a, s in zip(schedule.alphas, sigmas, strict=True))
        if not (falling and whole and 0 < sigmas[-1] and sigmas[0] <= 1):
            raise InvalidInput(
                "policy 'forecast' needs flow matching, or v- or noise prediction that keeps the variance: "
                "noise levels that fall from 1 at most to above 0",
                param="sigmas",
            )
        full = self.config.full_steps
        return ForecastState(
            schedule,
            History(depth=1),
            drift=0.0,
            coordinate=log_snr(sigmas, schedule.alphas),
            budget=() if full is None else place(sigmas, full, self.config.spacing),
        )

    def update(
        self, state: ForecastState, step: int, output: Tensor, inputs: StepInput, miss: Miss | None
    ) -> Tensor | None:
        """Refresh slope and correction.

        Returns:
            Per modality, the error of the extrapolation to ``step`` relative to the output's size;
            ``None`` while nothing could be extrapolated.
        """
        data = None if state.schedule.prediction == "flow" else _data(state, step, output, inputs.latent())
        if not len(state.history):
            state.data = data
            state.history.push(step, output)
            return None
        if not all(state.finite):
            state.slope = state.correction = None
        length = state.coordinate[step] - state.coordinate[state.newest]
        if data is None and step > state.newest + 1:
            evidence = self._take_miss(state, step, miss or self.miss(state, step, output, inputs), length)
        else:
            evidence = self._take_change(state, step, self._change(state, step, output, data), output, length)
        state.data = data
        state.reached = (length, length + state.reached[0])
        state.history.push(step, output)
        return evidence

    def settle(self, state: ForecastState, evidence: Sequence[float]) -> None:
        """Plan the streak from the budget, or from the error that was just seen."""
        newest, last, sigmas = state.newest, state.schedule.last_step, state.schedule.sigmas
        added = [
            (sigmas[step] - sigmas[step + 1]) * self._expected_error(state, step, evidence)
            for step in range(newest + 1, last)
        ]
        state.planned_drift = tuple(accumulate((*added, 0.0)))
        if self.config.full_steps is not None:
            state.next_full = next((step for step in state.budget if step > newest), last + 1)
            return
        if evidence:
            streak = sum(total <= self.config.tolerance for total in state.planned_drift)
        else:
            streak = state.schedule.num_steps // OPENING
        state.next_full = max(newest + 1, min(newest + 1 + streak, last))

    def terms(self, state: ForecastState) -> tuple[Tensor, ...]:
        """S and delta; nothing while there is no slope."""
        known = (state.slope, state.correction if state.slope is not None else None)
        return tuple(term for term in known if term is not None)

    def weights(self, state: ForecastState, step: int) -> tuple[float, ...]:
        """A and B."""
        sigmas, u = state.schedule.sigmas, state.coordinate
        sigma, r = sigmas[step], shrink(sigmas, step)
        moved, corrected = streak_terms(sigmas, u, state.newest, step)
        taken = r / (1 - r) if step == state.newest + 1 else 0.0
        along = (moved - u[step] + u[state.newest]) / sigma
        return (along, (corrected - taken) / sigma)[: len(self.terms(state))]

    def predict(self, state: ForecastState, step: int, inputs: StepInput) -> Tensor:
        if state.data is None:
            return super().predict(state, step, inputs)
        data = state.data
        if state.slope is not None:
            data = torch.add(data, state.slope, alpha=state.coordinate[step] - state.coordinate[state.newest])
        sigma, alpha = state.schedule.sigmas[step], state.schedule.alphas[step]
        if state.schedule.prediction == "v":
            return torch.sub(inputs.latent() * alpha, data).div_(sigma)
        return torch.sub(inputs.latent(), data, alpha=alpha).div_(sigma)

    def error(self, state: ForecastState, step: int, output: Tensor, inputs: StepInput) -> Tensor:
        if state.data is None:
            return super().error(state, step, output, inputs)
        return self.predict(state, step, inputs) - output

    def _take_miss(self, state: ForecastState, step: int, miss: Miss, length: float) -> Tensor | None:
        """New slope and correction after a streak of flow matching; returns the error of the extrapolation.

        Prediction and output have the latent in common, so that the data prediction is off by ``sigma``
        times as much as the output: ``S`` changes by ``sigma / length`` of it, and ``D - D0`` is
        ``length S``.
        """
        sigmas = state.schedule.sigmas
        sigma, kept, slope = sigmas[step], shrink(sigmas, step), state.slope
        towards, along = correction_terms(sigmas, state.coordinate, state.newest, step)
        if self.config.correct:
            state.correction = miss.error * (sigma * towards * kept)
            if slope is not None:
                state.correction.add_(slope, alpha=(length * towards - along) * kept)
        if slope is None:
            state.slope = miss.error * (sigma / length)
            return None
        slope.add_(miss.error, alpha=sigma / length)
        return sigma * miss.relative

    def _take_change(
        self, state: ForecastState, step: int, change: Tensor, output: Tensor, length: float
    ) -> Tensor | None:
        """The same from D - D0, where nothing was skipped or the latent has to be looked at."""
        evidence = None
        if state.slope is not None:
            error = torch.sub(change, state.slope, alpha=length)
            evidence = relative_rms(state.schedule.layout.powers(error, output))
        if state.correction is not None:  # no streak has taken it back yet
            state.correction = state.correction * shrink(state.schedule.sigmas, step)
        state.slope = change.div_(length)
        return evidence

    def _change(self, state: ForecastState, step: int, output: Tensor, data: Tensor | None) -> Tensor:
        """What the data prediction gained since the newest FULL step, D - D0.

        In flow matching with no step between, ``sigma (y0 - y)``: the latent in both is the same.
        """
        if data is None:
            return torch.sub(state.history.outputs[0], output).mul_(state.schedule.sigmas[step])
        assert state.data is not None
        return data - state.data

    def _expected_error(self, state: ForecastState, step: int, evidence: Sequence[float]) -> float:
        """Of the data prediction at ``step``, in the worst modality; 0 before any error was seen."""
        if not evidence:
            return 0.0
        u, (short, long) = state.coordinate, state.reached
        ahead = u[step] - u[state.newest]
        return max(evidence) * ahead * (ahead + short) / (short * long)


def _data(state: ForecastState, step: int, output: Tensor, latent: Tensor) -> Tensor:
    """The data prediction that an output stands for, other than in flow matching."""
    sigma, alpha = state.schedule.sigmas[step], state.schedule.alphas[step]
    if state.schedule.prediction == "v":
        return torch.sub(latent * alpha, output, alpha=sigma)
    return torch.sub(latent, output, alpha=sigma).div_(alpha)
