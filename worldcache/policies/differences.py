"""What policies share that extrapolate finite differences between evenly spaced FULL steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from pydantic import Field
from torch import Tensor

from worldcache.policies.base import History, Miss, PolicyConfig, PolicyState, Schedule, StepInput
from worldcache.policies.math import finite_differences
from worldcache.policies.planned import IndexPlanPolicy


class DifferenceConfig(PolicyConfig):
    """The schedule and the order of the prediction."""

    interval: int = Field(default=5, ge=1, description="Steps between FULL steps after the warmup (n).")
    warmup_steps: int = Field(default=3, ge=0, description="First steps that are all FULL.")
    order: int = Field(default=1, ge=1, le=3, description="Highest finite difference in the prediction (m).")


@dataclass
class DifferenceState(PolicyState):
    """Adds ``differences``: D_0 ... D_m at the newest FULL step, fewer while the past is short."""

    differences: tuple[Tensor, ...] = ()


DifferenceConfigT = TypeVar("DifferenceConfigT", bound=DifferenceConfig)


class DifferencePolicy(IndexPlanPolicy[DifferenceConfigT, DifferenceState]):
    """FULL while ``s < warmup``, then when ``(s - warmup - 1) mod n = 0``.

    The step right after the warmup is cached (unless n = 1) and the one after it is FULL: with n = 5
    and a warmup of 3, the steps 0, 1, 2, 4, 9, 14, ... are computed. The last step has no privilege.
    A subclass says in ``weights`` how the differences are combined.
    """

    @property
    def reach(self) -> int:
        return self.config.order + 1

    @property
    def kept_outputs(self) -> int:
        return self.config.order + 1

    def reset(self, schedule: Schedule) -> DifferenceState:
        return DifferenceState(schedule, History(depth=1))

    def is_due(self, step: int) -> bool:
        after = step - self.config.warmup_steps
        return after < 0 or (after - 1) % self.config.interval == 0

    def update(
        self, state: DifferenceState, step: int, output: Tensor, inputs: StepInput, miss: Miss | None
    ) -> None:
        """Difference the output against those before it. Stays on the device."""
        gap = step - state.newest if state.differences else 1
        state.differences = finite_differences(output, state.differences, gap, self.config.order)
        super().update(state, step, output, inputs, miss)

    def terms(self, state: DifferenceState) -> tuple[Tensor, ...]:
        return state.differences[1:]
