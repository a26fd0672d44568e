"""``forecast``: extrapolate the data prediction along the log signal-to-noise ratio, and take errors back.

Source: ours. Extrapolating x̂0 in log-SNR is what multistep solvers do (DPM-Solver++, arXiv 2211.01095),
and taking errors back once the next output is known is the corrector of UniPC (arXiv 2302.04867); here
both serve to repeat the run of a given sampler on its own fine schedule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Self

import torch
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError
from torch import Tensor

from worldcache.errors import InvalidInput
from worldcache.policies.base import History, PolicyConfig, PolicyState, Schedule, StepInput
from worldcache.policies.path import correction_terms, log_snr, place, shrink, streak_terms
from worldcache.policies.planned import PlannedPolicy


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

    Latents are counted from the chunk's first one, which never matters.

    Attributes:
        coordinate: log-SNR of each step.
        budget: the FULL steps of a budget; empty for a tolerance.
        displacement: the latent at the newest FULL step, ``[N, d]``.
        slope: S, change of the data prediction per unit of log-SNR, ``[N, d]``; ``None`` at first.
        correction: what the latent lacks, by the newest FULL output, ``[N, d]``.
        reached: log-SNR between the two newest FULL steps.
        expected: accumulated expected error after each cached step of the planned streak.
    """

    coordinate: tuple[float, ...] = ()
    budget: tuple[int, ...] = ()
    displacement: Tensor | None = None
    slope: Tensor | None = None
    correction: Tensor | None = None
    reached: tuple[float, float] = (0.0, 0.0)
    expected: tuple[float, ...] = ()


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

    A budget places its steps evenly in ``sigma^(1/spacing)``. With a tolerance, the error that the
    newest FULL output showed in the extrapolation to it, per modality, is scaled by
    ``(u - u0)(u - u1)``, the remainder of linear extrapolation, and a streak goes on while the sum of it,
    times the width of each step in sigma, stays within the tolerance. The first and the last
    step are FULL.
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
        return 4

    def reset(self, schedule: Schedule) -> ForecastState:
        """Raises:
        InvalidInput: the schedule is not one of flow matching with falling noise levels.
        """
        sigmas = schedule.sigmas
        falling = all(a > b for a, b in pairwise(sigmas))
        flow = all(abs(a + s - 1) < 1e-4 for a, s in zip(schedule.alphas, sigmas, strict=True))
        if not (falling and flow and 0 < sigmas[-1] and sigmas[0] <= 1):
            raise InvalidInput(
                "policy 'forecast' needs flow matching: noise levels that fall from 1 at most to above 0",
                param="sigmas",
            )
        full = self.config.full_steps
        return ForecastState(
            schedule,
            History(depth=1),
            drift=0.0,
            coordinate=log_snr(sigmas),
            budget=() if full is None else place(sigmas, full, self.config.spacing),
        )

    def should_compute(self, state: ForecastState, step: int, inputs: StepInput) -> bool:
        """As planned; the drift of a cached step is the error expected of the streak so far."""
        if super().should_compute(state, step, inputs):
            return True
        state.drift = state.expected[step - state.newest - 1]
        return False

    def update(self, state: ForecastState, step: int, output: Tensor, inputs: StepInput) -> Tensor | None:
        """Refresh displacement, slope and correction.

        Returns:
            Per modality, the error of the extrapolation to ``step`` relative to the output's size;
            ``None`` while nothing could be extrapolated.
        """
        if not len(state.history):
            state.displacement = torch.zeros_like(output)
            state.history.push(step, output)
            return None
        assert state.displacement is not None
        u, sigmas, newest, slope = state.coordinate, state.schedule.sigmas, state.newest, state.slope
        previous = state.history.outputs[0]
        latent = self._displaced(state, step)
        change = latent - state.displacement  # of the data prediction, D - D0, from here on
        change.sub_(output, alpha=sigmas[step]).add_(previous, alpha=sigmas[newest])
        length = u[step] - u[newest]
        evidence = None if slope is None else self._error(state, change - length * slope, output)
        if self.config.correct:
            state.correction = self._correction(state, step, change)
        state.reached = (length, length + state.reached[0])
        state.slope, state.displacement = change / length, latent
        state.history.push(step, output)
        return evidence

    def settle(self, state: ForecastState, evidence: Sequence[float]) -> None:
        """Plan the streak from the budget, or from the error that was just seen."""
        newest, last, sigmas = state.newest, state.schedule.last_step, state.schedule.sigmas
        ahead = range(newest + 1, last)
        expected, total = [], 0.0
        for step in ahead:
            total += (sigmas[step] - sigmas[step + 1]) * self._expected_error(state, step, evidence)
            expected.append(total)
        if self.config.full_steps is not None:
            due = next((step for step in state.budget if step > newest), last + 1)
        elif not evidence:
            due = newest + 1 + self._opening(state)
        else:
            due = next((s for s, e in zip(ahead, expected, strict=True) if e > self.config.tolerance), last)
        state.next_full = due if self.config.full_steps is not None else max(newest + 1, min(due, last))
        state.expected = (*expected, total)

    def predict(self, state: ForecastState, step: int, inputs: StepInput) -> Tensor:
        """``y0 + A S + B delta``, two numbers for each step."""
        output = state.history.outputs[0]
        sigma, h = state.schedule.sigmas[step], state.coordinate[step] - state.coordinate[state.newest]
        moved, corrected = self._terms(state, step)
        if state.slope is not None:
            output = torch.add(output, state.slope, alpha=(moved - h) / sigma)
        if state.correction is not None:
            r = shrink(state.schedule.sigmas, step)
            now = r / (1 - r) if step == state.newest + 1 else 0.0
            output = torch.add(output, state.correction, alpha=(corrected - now) / sigma)
        return output

    def _terms(self, state: ForecastState, step: int) -> tuple[float, float]:
        return streak_terms(state.schedule.sigmas, state.coordinate, state.newest, step)

    def _displaced(self, state: ForecastState, step: int) -> Tensor:
        """The latent at ``step`` after the streak, counted as ``state.displacement`` is."""
        assert state.displacement is not None
        sigmas = state.schedule.sigmas
        moved, corrected = self._terms(state, step)
        latent = torch.add(
            state.displacement, state.history.outputs[0], alpha=sigmas[step] - sigmas[state.newest]
        )
        if state.slope is not None and moved:
            latent.add_(state.slope, alpha=moved)
        if state.correction is not None and corrected:
            latent.add_(state.correction, alpha=corrected)
        return latent

    def _correction(self, state: ForecastState, step: int, change: Tensor) -> Tensor | None:
        """What the latent lacks after ``step``: the streak's part, or what no streak has taken back yet."""
        kept = shrink(state.schedule.sigmas, step)
        if step == state.newest + 1:
            return None if state.correction is None else state.correction * kept
        towards, along = correction_terms(state.schedule.sigmas, state.coordinate, state.newest, step)
        correction = change * (towards * kept)
        return correction if state.slope is None else correction.sub_(state.slope, alpha=along * kept)

    def _error(self, state: ForecastState, error: Tensor, output: Tensor) -> Tensor:
        """RMS of ``error`` over RMS of ``output``, per modality."""
        layout = state.schedule.layout
        squares = torch.stack([error.square().sum(-1), output.square().sum(-1)])
        sums = torch.stack(
            [
                sum((squares[:, rows].sum(-1) for rows in layout.slices(name)), squares.new_zeros(2))
                for name in layout.names
            ]
        )
        return (sums[:, 0] / sums[:, 1].clamp(min=torch.finfo(sums.dtype).tiny)).sqrt()

    def _expected_error(self, state: ForecastState, step: int, evidence: Sequence[float]) -> float:
        """Of the data prediction at ``step``, in the worst modality; 0 before any error was seen."""
        if not evidence:
            return 0.0
        u, (short, long) = state.coordinate, state.reached
        ahead = u[step] - u[state.newest]
        return max(evidence) * ahead * (ahead + short) / (short * long)

    def _opening(self, state: ForecastState) -> int:
        """Cached steps between the first FULL steps, where the latent is nearly all noise."""
        return state.schedule.num_steps // 8
