"""What policies that plan ahead share. Knows nothing of how any of them predicts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from worldcache.policies.base import ConfigT, History, Miss, Policy, PolicyState, Schedule, StateT, StepInput
from worldcache.policies.math import add_scaled


class PlannedPolicy(Policy[ConfigT, StateT]):
    """A policy that settles at each FULL step when the next one is due, in ``state.next_full``.

    Its predictions are the newest FULL output y0, which its history keeps, and a weighted sum of the same few
    other tensors all along a streak. So under a sampler whose step is linear a whole streak is one such sum:
    the weights are added up on the host first.
    """

    plans_ahead: ClassVar[bool] = True

    def should_compute(self, state: StateT, step: int, inputs: StepInput) -> bool:
        """FULL from ``state.next_full`` on, a fresh state too; a cached step takes its planned drift."""
        if step >= state.next_full:
            return True
        if state.planned_drift:
            state.drift = state.planned_drift[step - state.newest - 1]
        return False

    def terms(self, state: StateT) -> tuple[Tensor, ...]:
        """The tensors ``[N, d]`` that predictions after the newest FULL step add to y0; none by default."""
        return ()

    @abstractmethod
    def weights(self, state: StateT, step: int) -> tuple[float, ...]:
        """What each tensor that :meth:`add` adds counts at ``step``. Reads nothing to the host."""

    def add(self, state: StateT, total: Tensor, weights: Sequence[float]) -> Tensor:
        """Add the terms to ``total`` ``[N, d]`` in place, each as often as its weight says; returns it."""
        return add_scaled(total, self.terms(state), weights)

    def predict(self, state: StateT, step: int, inputs: StepInput) -> Tensor:
        newest, weights = state.history.outputs[0], self.weights(state, step)
        return self.add(state, newest.clone(), weights) if weights else newest

    def error(self, state: StateT, step: int, output: Tensor, inputs: StepInput) -> Tensor:
        return self.add(state, state.history.outputs[0] - output, self.weights(state, step))


class FixedPlanPolicy(PlannedPolicy[ConfigT, StateT]):
    """A planned policy whose next FULL step depends on the newest one's index alone.

    Its ``update`` returns no evidence, and the host plans from the schedule. Cached steps repeat the newest
    FULL output, the tensor itself and not a copy, unless a subclass has other terms.
    """

    @abstractmethod
    def next_due(self, newest: int, num_steps: int) -> int:
        """The FULL step after ``newest`` in a schedule of ``num_steps``, or ``num_steps`` if none is."""

    def update(self, state: StateT, step: int, output: Tensor, inputs: StepInput, miss: Miss | None) -> None:
        """Remember the output."""
        state.history.push(step, output)

    def settle(self, state: StateT, evidence: Sequence[float]) -> None:
        """Set ``state.next_full`` to the next step that is due."""
        state.next_full = self.next_due(state.newest, state.schedule.num_steps)

    def weights(self, state: StateT, step: int) -> tuple[float, ...]:
        return ()


class IndexPlanPolicy(FixedPlanPolicy[ConfigT, StateT]):
    """A policy that says of each step by its index whether it is FULL."""

    @abstractmethod
    def is_due(self, step: int) -> bool:
        """Whether ``step`` is FULL, given that an earlier step has been computed."""

    def next_due(self, newest: int, num_steps: int) -> int:
        return next((step for step in range(newest + 1, num_steps) if self.is_due(step)), num_steps)


def plain_state(schedule: Schedule) -> PolicyState:
    """A fresh state that keeps the newest FULL output alone."""
    return PolicyState(schedule, History(depth=1))
