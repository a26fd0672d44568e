"""What a cache did in a pipeline's latest call. Plain data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, eq=False)
class TransformerStep:
    """One call of a transformer, as an observer is told of it.

    Attributes:
        course: what stands for the schedule; the same object in all its steps, and another one in the next.
        index: index of the denoise step in it.
        full: whether it was FULL.
        tokens: tokens of the output.
        drift: accumulated drift after the step, ``None`` for policies without one.
        fell_back: whether a value that is not finite makes the next step FULL.
    """

    course: object
    index: int
    full: bool
    tokens: int
    drift: float | None
    fell_back: bool


Observer: TypeAlias = Callable[[TransformerStep], None]


def ignore(step: TransformerStep) -> None:
    """An observer that does nothing."""


@dataclass(frozen=True)
class BranchSummary:
    """The steps of one branch: calls that follow each other from step to step.

    Attributes:
        transformer: name of the transformer in the pipeline.
        context: name of the ``cache_context`` the calls were in, or ``None``.
        call: index among the calls of one step in that context: 1 for the second branch of guidance in
            two calls.
        decisions: one letter per step, ``F`` for FULL and ``.`` for CACHED.
    """

    transformer: str
    context: str | None
    call: int
    decisions: str

    @property
    def steps_total(self) -> int:
        return len(self.decisions)

    @property
    def steps_full(self) -> int:
        return self.decisions.count("F")

    @property
    def steps_cached(self) -> int:
        return self.decisions.count(".")

    @property
    def skip_ratio(self) -> float:
        """Share of the steps that were CACHED; 0 before the first."""
        return self.steps_cached / self.steps_total if self.decisions else 0.0


@dataclass(frozen=True)
class CacheSummary:
    """What the cache did since the pipeline was last called.

    Attributes:
        policy: the policy in words.
        branches: in the order of their first calls; empty before the first call.
    """

    policy: str
    branches: tuple[BranchSummary, ...]

    @property
    def steps_total(self) -> int:
        return sum(branch.steps_total for branch in self.branches)

    @property
    def steps_full(self) -> int:
        return sum(branch.steps_full for branch in self.branches)

    @property
    def steps_cached(self) -> int:
        return sum(branch.steps_cached for branch in self.branches)

    @property
    def skip_ratio(self) -> float:
        """Share of the steps of all branches that were CACHED; 0 before the first."""
        return self.steps_cached / self.steps_total if self.steps_total else 0.0
