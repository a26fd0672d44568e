"""What policies share that decide step by step, by a measured change that they add up.

Knows nothing of what is measured or of how any policy predicts.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from pydantic import Field
from torch import Tensor

from worldcache.policies.base import Policy, PolicyConfig, PolicyState, StepInput


class AccumulatingConfig(PolicyConfig):
    """The steps that are FULL whatever is measured, and what may add up before the next."""

    warmup_steps: int = Field(default=1, ge=0, description="First steps that are all FULL.")
    threshold: float = Field(default=0.1, ge=0, description="Accumulated change from which a step is FULL.")


@dataclass
class AccumulatingState(PolicyState):
    """Adds ``watched``, what was looked at in the latest step. ``drift`` is the accumulated change."""

    watched: Tensor | None = None


AccumulatingStateT = TypeVar("AccumulatingStateT", bound=AccumulatingState)
AccumulatingConfigT = TypeVar("AccumulatingConfigT", bound=AccumulatingConfig)


class AccumulatingPolicy(Policy[AccumulatingConfigT, AccumulatingStateT]):
    """Adds an estimate of the output's change at each step; FULL once the sum reaches the threshold.

    FULL as well in the warmup, at the last step, and where the estimate is not finite. One number is
    read to the host for each step that is not FULL anyway.
    """

    plans_ahead: ClassVar[bool] = False

    @abstractmethod
    def watch(self, state: AccumulatingStateT, inputs: StepInput) -> Tensor:
        """What the estimate compares between consecutive steps."""

    @abstractmethod
    def estimate(self, state: AccumulatingStateT, previous: Tensor, current: Tensor) -> float:
        """The expected relative change of the output since the previous step. Reads one number."""

    def should_compute(self, state: AccumulatingStateT, step: int, inputs: StepInput) -> bool:
        previous, state.watched = state.watched, self.watch(state, inputs)
        settled = step in (state.next_full, state.schedule.last_step) or step < self.config.warmup_steps
        if settled or previous is None:
            return True
        state.drift = (state.drift or 0.0) + self.estimate(state, previous, state.watched)
        if math.isfinite(state.drift):
            return state.drift >= self.config.threshold
        state.fallbacks += 1
        return True


def relative_change(previous: Tensor, current: Tensor) -> Tensor:
    """``mean|current - previous| / mean|previous|``, a scalar on the device."""
    return (current - previous).abs().mean() / previous.abs().mean()
