"""``taylor``: extrapolate the output by its finite differences between fixed FULL steps.

Source: TaylorSeer, arXiv 2503.06923, applied to the model's output instead of to its layers; the
schedule and the defaults are those of diffusers 0.42, ``hooks/taylorseer_cache.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from worldcache.policies.base import History, PolicyConfig, PolicyState, Schedule, StepInput
from worldcache.policies.math import finite_differences, taylor_sum
from worldcache.policies.planned import IndexPlanPolicy


class TaylorConfig(PolicyConfig):
    """Parameters of ``taylor``."""

    interval: int = Field(default=5, ge=1, description="Steps between FULL steps after the warmup (n).")
    warmup_steps: int = Field(default=3, ge=0, description="First steps that are all FULL.")
    order: int = Field(default=1, ge=1, le=3, description="Highest finite difference in the prediction (m).")


@dataclass
class TaylorState(PolicyState):
    """Adds ``differences``: D_0 ... D_m at the newest FULL step, fewer while the past is short."""

    differences: tuple[Tensor, ...] = ()


class TaylorPolicy(IndexPlanPolicy[TaylorConfig, TaylorState]):
    """FULL while ``s < warmup``, then when ``(s - warmup - 1) mod n = 0``; cached steps extrapolate.

    The step right after the warmup is cached (unless n = 1) and the one after it is FULL: with the
    defaults 0, 1, 2, 4, 9, 14, ... are computed. The last step has no privilege. The prediction is
    ``sum_(i<=m) D_i k^i / i!``, of a lower order while fewer outputs are known.
    """

    name: ClassVar[str] = "taylor"
    description: ClassVar[str] = (
        "Extrapolates the output by its Taylor series between evenly spaced FULL steps."
    )
    source: ClassVar[str] = "TaylorSeer, arXiv 2503.06923, at the granularity of the model's output"
    config_type: ClassVar[type[PolicyConfig]] = TaylorConfig

    def reset(self, schedule: Schedule) -> TaylorState:
        return TaylorState(schedule, History(depth=1))

    @property
    def reach(self) -> int:
        return self.config.order + 1

    @property
    def kept_outputs(self) -> int:
        return self.config.order + 1

    def is_due(self, step: int) -> bool:
        after = step - self.config.warmup_steps
        return after < 0 or (after - 1) % self.config.interval == 0

    def update(self, state: TaylorState, step: int, output: Tensor, inputs: StepInput) -> None:
        """Difference the output against those before it. Stays on the device."""
        gap = step - state.newest if state.differences else 1
        state.differences = finite_differences(output, state.differences, gap, self.config.order)
        super().update(state, step, output, inputs)

    def predict(self, state: TaylorState, step: int, inputs: StepInput) -> Tensor:
        return taylor_sum(state.differences, step - state.newest)
