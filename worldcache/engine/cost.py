"""What a rollout will take, from what ticks have taken: plain numbers, no torch, no clock."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass

from worldcache.engine.engine import Limits, Tick

WEIGHT = 0.2
"""Of the newest tick in the running mean of its kind."""


@dataclass(frozen=True)
class Work:
    """What is left of a rollout.

    Attributes:
        model: its id.
        rows: backbone rows of each of its calls.
        calls: backbone calls until it is done; an expectation, so not whole.
    """

    model: str
    rows: int
    calls: float


class CostModel:
    """Learns what a tick takes, by model and rows.

    Written on the engine's thread and read on others: every update replaces one number.
    """

    def __init__(self) -> None:
        self._seconds: defaultdict[str, dict[int, float]] = defaultdict(dict)

    def observe(self, tick: Tick) -> None:
        """Take a tick into account; one whose batch had to be halved says nothing of its size."""
        if len(tick.calls) == 1:
            known = self._seconds[tick.model]
            before = known.get(tick.rows, tick.seconds)
            known[tick.rows] = before + WEIGHT * (tick.seconds - before)

    def tick_seconds(self, model: str, rows: int) -> float | None:
        """Expected time of a tick of ``rows`` rows; ``None`` before any tick of the model.

        Between measured sizes it is interpolated; above them it grows with the rows, below it stays.
        """
        known = dict(self._seconds.get(model, {}))
        if not known:
            return None
        below = max((size for size in known if size <= rows), default=None)
        above = min((size for size in known if size >= rows), default=None)
        if below is None or above is None:
            nearest = below or above or rows
            return known[nearest] * max(1.0, rows / nearest)
        if below == above:
            return known[rows]
        share = (rows - below) / (above - below)
        return known[below] + share * (known[above] - known[below])

    def round_seconds(self, running: Sequence[Work], max_batch: int) -> float | None:
        """Expected time in which every one of ``running`` gets one backbone call."""
        rows: defaultdict[str, int] = defaultdict(int)
        for work in running:
            rows[work.model] += work.rows
        total = 0.0
        for model, count in rows.items():
            seconds = self.tick_seconds(model, min(count, max_batch))
            if seconds is None:
                return None
            total += seconds * max(1.0, count / max_batch)
        return total

    def end_times(
        self, active: Sequence[Work], waiting: Sequence[Work], limits: Limits
    ) -> list[float] | None:
        """When each would end if nothing else came: seconds from now, the active ones first.

        Those that run get a call each in a round. When one ends, the next that waits takes its place.

        Returns:
            ``None`` before any tick of a model that is involved.
        """
        works = [*active, *waiting]
        left = [max(0.0, work.calls) for work in works]
        ends = [0.0] * len(works)
        running, line, clock = list(range(len(active))), deque(range(len(active), len(works))), 0.0
        while running or line:
            while line and len(running) < limits.max_active:
                running.append(line.popleft())
            seconds = self.round_seconds([works[index] for index in running], limits.max_batch)
            if seconds is None:
                return None
            calls = min(left[index] for index in running)
            clock += calls * seconds
            for index in running:
                left[index] -= calls
                ends[index] = clock
            running = [index for index in running if left[index] > 0]
        return ends
