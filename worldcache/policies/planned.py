"""What policies that plan ahead share. Knows nothing of how any of them predicts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from worldcache.policies.base import ConfigT, History, Policy, PolicyState, Schedule, StateT


class PlannedPolicy(Policy[ConfigT, StateT]):
    """A policy that settles at each FULL step when the next one is due, in ``state.next_full``."""

    plans_ahead: ClassVar[bool] = True

    def should_compute(self, state: StateT, step: int, latent: Tensor | None) -> bool:
        """FULL from ``state.next_full`` on; a fresh state starts FULL."""
        return step >= state.next_full


class FixedPlanPolicy(PlannedPolicy[ConfigT, StateT]):
    """A planned policy whose FULL steps depend on the step's index alone.

    A subclass says which steps are due. Its ``update`` returns no evidence, and the host plans from
    the schedule.
    """

    @abstractmethod
    def is_due(self, step: int) -> bool:
        """Whether ``step`` is FULL, given that an earlier step has been computed."""

    def update(self, state: StateT, step: int, output: Tensor, latent: Tensor | None) -> None:
        """Remember the output."""
        state.history.push(step, output)

    def plan(self, state: StateT, evidence: Sequence[float]) -> None:
        """Set ``state.next_full`` to the next step that is due, or to the end of the schedule."""
        after = range(state.history.steps[0] + 1, state.schedule.num_steps)
        state.next_full = next((step for step in after if self.is_due(step)), state.schedule.num_steps)


def plain_state(schedule: Schedule) -> PolicyState:
    """A fresh state that keeps the newest FULL output alone."""
    return PolicyState(schedule, History(depth=1))
