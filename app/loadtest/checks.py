"""What the findings must show: what is correct whatever the machine, and what is promised of speed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from app.loadtest.results import Findings, Levels
from worldcache.errors import WorldCacheError

WALL_OVER_BACKBONE = 1.1
"""Wall time of rollouts at once, over the backbone time of their calls."""

GAIN_TOLERANCE = 0.1
"""By which share a policy's speed-up may change when its rollouts share batches."""

GOODPUT = 0.85
"""Share of the sustainable rate that is completed under overload; the clients are on the same machine."""

MEMORY_SHARE = 0.02
"""Of the server's memory that it may grow by."""


@dataclass(frozen=True)
class Check:
    """One thing that must hold.

    Attributes:
        claim: in words.
        measured: what was found.
        holds: whether it does; ``None`` if it could not be measured.
        always: it must hold on any machine, however slow.
    """

    claim: str
    measured: str
    holds: bool | None
    always: bool = False


def check(findings: Findings) -> list[Check]:
    """Every check."""
    return [*_correctness(findings), *_batching(findings), *_latency(findings), *_memory(findings)]


def broken(checks: list[Check]) -> list[Check]:
    """Those that fail although they must hold on any machine."""
    return [c for c in checks if c.always and c.holds is False]


def refuse_broken(checks: list[Check]) -> None:
    """End the command if something does not hold that must.

    Raises:
        WorldCacheError: the message says what, and what was found.
    """
    wrong = broken(checks)
    if wrong:
        raise WorldCacheError("; ".join(f"{c.claim}: {c.measured}" for c in wrong))


def latency_bounds(findings: Findings) -> tuple[float, float, float]:
    """Seconds that the queue promises under overload.

    Returns:
        The mean by Little's law, for a server that is full: all places over the sustainable rate. The
        bound of a request that is accepted last: those in line before it over the rate, then its own time
        among the active rollouts, by the slowest policy. And the same bound if the server completed fewer
        than the sustainable rate.
    """
    active, queue = findings.capacity
    bound = queue / findings.sustainable + active / min(rates_at_most_clients(findings))
    return (active + queue) / findings.sustainable, bound, bound / min(1.0, goodput(findings))


def goodput(findings: Findings) -> float:
    """Rollouts completed under overload, as a share of the sustainable rate; above 0 in any case."""
    return max(1e-9, findings.overload.completed_per_second / findings.sustainable)


def rates_at_most_clients(findings: Findings) -> list[float]:
    """Rollouts a second of every policy at the most clients."""
    most = max(point.clients for point in findings.points)
    return [p.rollouts_per_second for p in findings.points if p.clients == most]


def _correctness(findings: Findings) -> Iterator[Check]:
    for name, rows in (("closed loops", findings.points), ("at once and one by one", findings.batching)):
        failed = sum(row.failed for row in rows)
        yield Check(f"{name}: every rollout succeeds", f"{failed} do not", failed == 0, True)
    for name, load in (("steady mix", findings.steady), ("overload", findings.overload)):
        lost = sum(load.lost.values())
        yield Check(
            f"{name}: no accepted rollout is lost",
            f"{load.succeeded} of {load.accepted} succeeded, {lost} lost",
            lost == 0 and load.succeeded == load.accepted,
            True,
        )
        yield Check(
            f"{name}: 200, 202, or 503 and 429 with Retry-After, nothing else",
            f"{load.accepted} accepted, {load.refused} refused, {load.wrong} others",
            load.wrong == 0,
            True,
        )
    cancelled = findings.cancellations
    yield Check(
        "queue and active rollouts are as before the overload",
        _gauges(findings.after),
        _same_gauges(findings.before, findings.after),
        True,
    )
    yield Check(
        "queue and active rollouts are as before the cancellations",
        _gauges(cancelled.after),
        _same_gauges(cancelled.before, cancelled.after),
        True,
    )
    yield Check("cancellations: no request fails", f"{cancelled.failed} do", cancelled.failed == 0, True)
    yield Check(
        "every rollout that DELETE cancels is counted as cancelled",
        f"{cancelled.deleted} deleted and {cancelled.disconnected} disconnected, "
        f"{cancelled.counted:.0f} counted",
        cancelled.counted >= cancelled.deleted,
        True,
    )


def _batching(findings: Findings) -> Iterator[Check]:
    for row in findings.batching:
        name = f"`{row.policy}`, {row.rollouts} at once"
        own = f" ({row.of_backbone:.3f} of the server's own)"
        yield Check(
            f"{name}: wall time at most {WALL_OVER_BACKBONE} of the table's backbone time",
            "not measured" if row.of_table is None else f"{row.of_table:.3f}{own}",
            None if row.of_table is None else row.of_table <= WALL_OVER_BACKBONE,
        )
        yield Check(f"{name}: faster than one after another", f"{row.of_apart:.3f}", row.of_apart < 1)
    for row in findings.batching[1:]:
        yield Check(
            f"`{row.policy}`: its speed-up at once is within {GAIN_TOLERANCE:.0%} of that of single rollouts",
            f"{row.gain_together:.2f} and {row.gain_apart:.2f}",
            abs(row.kept_gain - 1) <= GAIN_TOLERANCE,
        )


def _latency(findings: Findings) -> Iterator[Check]:
    *_, bound = latency_bounds(findings)
    p99 = findings.overload.latency.p99
    yield Check(
        "overload: p99 latency within what the queue promises at the rate completed",
        f"{p99:.1f} s of {bound:.1f} s",
        None if math.isnan(p99) else p99 <= bound,
    )
    kept = goodput(findings)
    yield Check(
        f"overload: at least {GOODPUT:.0%} of the sustainable rate is completed",
        f"{kept:.0%}",
        kept >= GOODPUT,
    )


def _memory(findings: Findings) -> Iterator[Check]:
    memory = findings.memory
    grown = None if memory is None else max(0.0, memory.growth * memory.minutes)
    yield Check(
        f"overload: memory grows by at most {MEMORY_SHARE:.0%} in the last two fifths",
        "not measured" if memory is None else f"{grown:.1f} of {memory.level:.0f} MiB",
        None if memory is None or grown is None else grown <= MEMORY_SHARE * memory.level,
    )
    before, after = findings.cancellations.before.memory, findings.cancellations.after.memory
    known = before is not None and after is not None
    yield Check(
        f"cancellations: memory as before, within {MEMORY_SHARE:.0%}",
        f"{before:.1f} and {after:.1f} MiB" if known else "not measured",
        after <= before * (1 + MEMORY_SHARE) if before is not None and after is not None else None,
    )


def _gauges(levels: Levels) -> str:
    return f"{levels.queue_depth:.0f} in line, {levels.active:.0f} active"


def _same_gauges(before: Levels, after: Levels) -> bool:
    return (before.queue_depth, before.active) == (after.queue_depth, after.active)
