"""``interval``: compute every n-th step and repeat its output in between.

Source: FORA, arXiv 2407.01425, applied to the model's output instead of to its layers.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from worldcache.policies.base import PolicyConfig, PolicyState, Schedule
from worldcache.policies.planned import IndexPlanPolicy, plain_state


class IntervalConfig(PolicyConfig):
    """Parameters of ``interval``."""

    interval: int = Field(
        default=5, ge=1, description="Compute every n-th step (n); published between 3 and 7."
    )


class IntervalPolicy(IndexPlanPolicy[IntervalConfig, PolicyState]):
    """FULL when ``s mod n = 0``; a cached step returns y0.

    The last step has no privilege. Under Euler, repeating y0 over a streak equals one coarser step.
    """

    name: ClassVar[str] = "interval"
    description: ClassVar[str] = "Computes every n-th step and reuses its output until the next."
    source: ClassVar[str] = "FORA, arXiv 2407.01425, at the granularity of the model's output"
    config_type: ClassVar[type[PolicyConfig]] = IntervalConfig

    def reset(self, schedule: Schedule) -> PolicyState:
        return plain_state(schedule)

    def is_due(self, step: int) -> bool:
        return step % self.config.interval == 0
