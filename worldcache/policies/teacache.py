"""``teacache``: compute again once the timestep-modulated input has changed enough.

Source: TeaCache, arXiv 2411.19108. Output-level: where the published code reuses the residual of the
hidden states, this reuses the model's output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor

from worldcache.policies.base import History, Miss, PolicyConfig, Schedule, StepInput
from worldcache.policies.calibration import relative_changes, teacache_coefficients
from worldcache.policies.online import (
    AccumulatingConfig,
    AccumulatingPolicy,
    AccumulatingState,
    relative_change,
)


class TeaCacheConfig(AccumulatingConfig):
    """Parameters of ``teacache``, with the paper's symbols in brackets."""

    threshold: float = Field(
        default=0.1,
        ge=0,
        description="Accumulated estimate of the output's relative change from which a step is FULL (delta).",
    )
    coefficients: tuple[float, ...] | None = Field(
        default=None,
        min_length=1,
        max_length=16,
        description="Polynomial from the input's relative change to the output's, highest power first; "
        "from the model's calibration if left out.",
    )


class TeaCachePolicy(AccumulatingPolicy[TeaCacheConfig, AccumulatingState]):
    """Each step adds ``poly(mean|m_s - m_(s-1)| / mean|m_(s-1)|)``; cached steps return y0.

    m is the timestep-modulated input of the conditional branch. A step is FULL once the sum has
    reached the threshold, and at both ends of the schedule. The polynomial is the model's own.
    """

    name: ClassVar[str] = "teacache"
    description: ClassVar[str] = (
        "Reuses the output until the timestep-modulated input has changed too much (output-level)."
    )
    source: ClassVar[str] = "TeaCache, arXiv 2411.19108, at the granularity of the model's output"
    config_type: ClassVar[type[PolicyConfig]] = TeaCacheConfig
    calibrated: ClassVar[tuple[str, ...]] = ("coefficients",)

    @property
    def kept_outputs(self) -> int:
        return 2

    @classmethod
    def calibrate(cls, outputs: Tensor, modulated: Callable[[], Tensor]) -> Mapping[str, Any]:
        fit = teacache_coefficients(relative_changes(modulated()), relative_changes(outputs))
        return {"coefficients": fit}

    def reset(self, schedule: Schedule) -> AccumulatingState:
        self._from_calibration("coefficients")
        return AccumulatingState(schedule, History(depth=1), drift=0.0)

    def watch(self, state: AccumulatingState, inputs: StepInput) -> Tensor:
        return inputs.modulated()

    def estimate(self, state: AccumulatingState, previous: Tensor, current: Tensor) -> float:
        change, estimate = relative_change(previous, current).item(), 0.0
        for coefficient in self._from_calibration("coefficients"):
            estimate = estimate * change + coefficient
        return estimate

    def update(
        self, state: AccumulatingState, step: int, output: Tensor, inputs: StepInput, miss: Miss | None
    ) -> None:
        """Remember the output."""
        state.history.push(step, output)

    def settle(self, state: AccumulatingState, evidence: Sequence[float]) -> None:
        """Nothing to settle: the next steps decide for themselves."""

    def predict(self, state: AccumulatingState, step: int, inputs: StepInput) -> Tensor:
        return state.history.outputs[0]
