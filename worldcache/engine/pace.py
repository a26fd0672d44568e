"""A deadline as a policy: each chunk gets the most FULL steps that the time left allows."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from worldcache.policies.registry import AnyPolicy, make_policy


def describe_budgets(full_steps: Sequence[int], num_steps: int) -> str:
    """In words, what :func:`budget_policy` made of the chunks, which took so many FULL steps each."""
    least, most = min(full_steps), max(full_steps)
    if least >= num_steps:
        return "none"
    return f"forecast, full_steps {least}" + (f" to {most}" if most > least else "")


def budget_policy(full_steps: int, num_steps: int) -> AnyPolicy:
    """The policy that computes exactly ``full_steps`` of ``num_steps``: all of them need no cache."""
    return make_policy("none") if full_steps >= num_steps else make_policy("forecast", full_steps=full_steps)


class Pacer:
    """Chooses the policy of each chunk of one rollout; the ``pace`` of a request.

    It starts from an expectation and goes on with what the rollout's own chunks have taken, other
    rollouts in the same batches included.

    Args:
        num_steps: denoise steps per chunk.
        fewest: FULL steps below which no chunk goes, late or not.
        call_seconds: expected time of a FULL step; ``None`` if nobody knows: the first chunk gets ``fewest``.
        margin: share of the time that is kept back.
        clock: seconds, as deadlines count them.
    """

    def __init__(
        self,
        num_steps: int,
        fewest: int,
        call_seconds: float | None,
        margin: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._num_steps, self._fewest = num_steps, min(fewest, num_steps)
        self._call_seconds, self._margin, self._clock = call_seconds, margin, clock
        self._began: float | None = None
        self._spent = 0

    def __call__(self, chunks: int, seconds: float) -> AnyPolicy:
        """The next chunk's policy.

        Args:
            chunks: how many are left, the next one included.
            seconds: until the deadline.
        """
        now = self._clock()
        if self._began is not None:
            self._call_seconds = (now - self._began) / self._spent
        self._began = now
        self._spent = max(self._fewest, min(self._num_steps, self._affordable(chunks, seconds)))
        return budget_policy(self._spent, self._num_steps)

    def _affordable(self, chunks: int, seconds: float) -> int:
        if self._call_seconds is None:
            return 0
        return int(seconds * (1 - self._margin) / (chunks * max(self._call_seconds, 1e-9)))
