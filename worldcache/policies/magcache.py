"""``magcache``: skip while the calibrated magnitudes of the outputs say that little changes.

Source: MagCache, arXiv 2506.09045. Output-level: where the published code reuses the residual of the
hidden states, this reuses the model's output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor

from worldcache.policies.base import PolicyConfig, PolicyState, Schedule
from worldcache.policies.calibration import magnitude_ratios
from worldcache.policies.planned import FixedPlanPolicy, plain_state


class MagCacheConfig(PolicyConfig):
    """Parameters of ``magcache``, with the paper's symbols in brackets."""

    threshold: float = Field(
        default=0.12, ge=0, description="Accumulated magnitude error above which a step is FULL (delta)."
    )
    max_skip: int = Field(default=2, ge=1, le=1000, description="Longest streak of cached steps (K).")
    retention: float = Field(
        default=0.2, ge=0, le=1, description="Share of the schedule at its beginning that is all FULL."
    )
    ratios: tuple[float, ...] | None = Field(
        default=None,
        min_length=1,
        max_length=1000,
        description="Magnitude of each step's output over that of the step before it; from the model's "
        "calibration if left out.",
    )


class MagCachePolicy(FixedPlanPolicy[MagCacheConfig, PolicyState]):
    """Each step sets ``rho <- rho R_s`` and ``err <- err + |1 - rho|``; cached steps return y0.

    R_s is the calibrated ratio of step s. A step is FULL when ``err > threshold`` or the streak would
    be longer than ``max_skip``, and among the first ``int(T * retention)``; a FULL step sets rho to 1
    and err to 0. The ratios are known, so the whole plan follows from the schedule. A calibration with
    another number of steps is read at the nearest step, as published.
    """

    name: ClassVar[str] = "magcache"
    description: ClassVar[str] = (
        "Reuses the output while calibrated magnitude ratios keep the error small (output-level)."
    )
    source: ClassVar[str] = "MagCache, arXiv 2506.09045, at the granularity of the model's output"
    config_type: ClassVar[type[PolicyConfig]] = MagCacheConfig
    calibrated: ClassVar[tuple[str, ...]] = ("ratios",)

    @classmethod
    def calibrate(cls, outputs: Tensor, modulated: Callable[[], Tensor]) -> Mapping[str, Any]:
        return {"ratios": magnitude_ratios(outputs)}

    def reset(self, schedule: Schedule) -> PolicyState:
        self._from_calibration("ratios")
        return plain_state(schedule)

    def next_due(self, newest: int, num_steps: int) -> int:
        ratios = nearest(self._from_calibration("ratios"), num_steps)
        rho, error = 1.0, 0.0
        for step in range(newest + 1, num_steps):
            rho *= ratios[step]
            error += abs(1.0 - rho)
            streak = step - newest
            retained = step < int(num_steps * self.config.retention)
            if retained or error > self.config.threshold or streak > self.config.max_skip:
                return step
        return num_steps


def nearest(ratios: Sequence[float], num_steps: int) -> list[float]:
    """The ratios for a schedule of ``num_steps``, each from the nearest calibrated step.

    Source: ``nearest_interp`` of the published code.
    """
    if num_steps == 1:
        return [ratios[-1]]
    scale = (len(ratios) - 1) / (num_steps - 1)
    return [ratios[round(step * scale)] for step in range(num_steps)]
