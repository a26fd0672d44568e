"""The findings as a Markdown report."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from app.loadtest.checks import Check, latency_bounds
from app.loadtest.measures import Spread
from app.loadtest.results import Findings, Levels, Load


def as_markdown(findings: Findings, checks: Sequence[Check], picture: str | None = None) -> str:
    """The whole report.

    Args:
        picture: name of the plot, which lies beside the report.
    """
    about = findings.about
    lines = ["# Load", "", f"{about['machine']}.", ""]
    lines += [
        f"Model `{about['model']}` in {about['dtype']}, rollouts of {about['frames']} frames with "
        f"{about['steps']} denoise steps a chunk, over HTTP. At most {about['max_batch']} rows a call; "
        f"{findings.capacity[0]} rollouts may be active and {findings.capacity[1]} wait.",
        "",
    ]
    lines += claims(checks)
    if picture:
        lines += [f"![Throughput and latency against the number of clients]({picture})", ""]
    lines += _points(findings) + _backbone(findings) + _batching(findings)
    lines += ["## Steady mix", "", *_load(findings.steady, findings)]
    lines += ["## Overload", "", *_load(findings.overload, findings), *_overload(findings)]
    lines += _cancellations(findings)
    return "\n".join(lines).rstrip() + "\n"


def table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table and an empty line."""
    lines = [f"| {' | '.join(heading)} |", f"|{'---|' * len(heading)}"]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows), ""]


def to_json(checks: Sequence[Check], findings: Mapping[str, Any]) -> str:
    """Checks and findings as a document; numbers that JSON does not know are null."""
    return json.dumps(_finite({"checks": [vars(c) for c in checks], **findings}), indent=1) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def seconds(value: float) -> str:
    """Three digits, or ``-`` for none."""
    if math.isnan(value):
        return "-"
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def share(value: float | None) -> str:
    """A percentage, or ``n/a`` if the server does not tell."""
    return "n/a" if value is None else f"{value:.1%}"


def claims(checks: Sequence[Check]) -> list[str]:
    """The section that says what holds."""
    words = {True: "yes", False: "**no**", None: "not measured"}
    rows = [[c.claim, c.measured, words[c.holds], "yes" if c.always else "speed"] for c in checks]
    return ["## Claims", "", *table(["claim", "measured", "holds", "on any machine"], rows)]


def _points(findings: Findings) -> list[str]:
    rows = [
        [
            f"`{p.policy}`",
            str(p.clients),
            str(p.latency.count),
            f"{p.rollouts_per_second:.3g}",
            f"{p.frames_per_second:.1f}",
            *_percentiles(p.latency),
            seconds(p.first_frame.p50),
            seconds(p.first_frame.p95),
            seconds(p.queue.p50),
            seconds(p.queue.p95),
            "-" if math.isnan(p.batch) else f"{p.batch:.1f}",
            share(p.outside),
        ]
        for p in findings.points
    ]
    heading = ["policy", "clients", "n", "rollouts/s", "frames/s", "p50", "p90", "p95", "p99"]
    heading += ["first frame p50", "p95", "queue p50", "p95", "rows a call", "outside the backbone"]
    return [
        "## Closed loops",
        "",
        "Clients that ask again as soon as they have their answer. Times in seconds; `n` rollouts each.",
        "",
        *table(heading, rows),
    ]


def _backbone(findings: Findings) -> list[str]:
    if not findings.backbone:
        return []
    one = findings.backbone.get(1)
    rows = [
        [
            str(size),
            f"{1000 * spent:.1f}",
            f"{1000 * spent / size:.2f}",
            "-" if one is None else f"{size * one / spent:.2f}x",
        ]
        for size, spent in sorted(findings.backbone.items())
    ]
    return [
        "## Backbone",
        "",
        "One call for a number of rows with different timesteps, while the server is idle: medians.",
        "",
        *table(["rows", "ms", "ms a row", "over single rows"], rows),
    ]


def _batching(findings: Findings) -> list[str]:
    rows = [
        [
            f"`{b.policy}`",
            f"{b.together:.2f}",
            f"{b.apart:.2f}",
            f"{b.of_apart:.3f}",
            "-" if b.of_table is None else f"{b.of_table:.3f}",
            f"{b.of_backbone:.3f}",
            f"{b.gain_apart:.2f}x",
            f"{b.gain_together:.2f}x",
            f"{b.kept_gain:.3f}",
            f"{b.batch:.1f}",
            share(b.outside),
        ]
        for b in findings.batching
    ]
    heading = [
        "policy",
        "at once, s",
        "one by one, s",
        "ratio",
        "over the table",
        "over the server's backbone",
    ]
    heading += ["speed-up one by one", "at once", "ratio", "rows a call", "outside the backbone"]
    first = findings.batching[0]
    return [
        f"## {first.rollouts} at once",
        "",
        f"{first.rollouts} equal rollouts at once against the same number one after another; medians of "
        f"{first.repeats} repeats in turn. Speed-ups are over `{first.policy}`."
        + ("" if first.of_table is None else " The table is measured anew before and after each."),
        "",
        *table(heading, rows),
    ]


def _load(load: Load, findings: Findings) -> list[str]:
    statuses = ", ".join(f"{count} x {status or 'none'}" for status, count in load.statuses.items())
    lines = [
        f"Poisson arrivals of all policies for {load.seconds:g} s at {load.share:g} of the sustainable "
        f"{findings.sustainable:.3g} rollouts/s. {load.sent} requests, {load.later} of them asynchronous: "
        f"{statuses}. {load.accepted} accepted, {load.succeeded} succeeded, {load.refused} refused with "
        f"Retry-After; {load.completed_per_second:.3g} rollouts/s completed. Requests were sent at most "
        f"{1000 * load.late:.0f} ms late.",
        "",
    ]
    kinds = {"all": load.latency, **{f"`{name}`": spread for name, spread in load.by_policy.items()}}
    kinds |= {"all: first frame": load.first_frame, "all: queue": load.queue}
    rows = [
        [name, str(s.count), seconds(s.mean), *_percentiles(s), seconds(s.highest)]
        for name, s in kinds.items()
    ]
    return lines + table(["latency, s", "n", "mean", "p50", "p90", "p95", "p99", "highest"], rows)


def _overload(findings: Findings) -> list[str]:
    mean, bound, found = latency_bounds(findings)
    load, memory = findings.overload, findings.memory
    lines = [
        "A burst that fills every place comes first. A full server's mean latency is its places over its "
        f"sustainable rate: {mean:.1f} s (found: {seconds(load.latency.mean)} s). The last in line waits for "
        f"those before it, then takes its turn among the active: {bound:.1f} s at that rate, {found:.1f} s "
        f"at the rate completed (found, p99: {seconds(load.latency.p99)} s).",
        "",
    ]
    if load.lost:
        lost = ", ".join(f"{count} x {what}" for what, count in load.lost.items())
        lines += [f"Lost: {lost}.", ""]
    if memory is not None:
        lines += [
            f"Memory in the last two fifths: {memory.level:.1f} MiB, {memory.growth:+.2f} MiB a minute, "
            f"{memory.range:.1f} MiB between the highest and the lowest of the samples.",
            "",
        ]
    return lines


def _cancellations(findings: Findings) -> list[str]:
    found = findings.cancellations
    number = found.deleted + found.disconnected + found.escaped + found.failed
    names = ("before", "after")
    rows = [[name, *_levels(levels)] for name, levels in zip(names, (found.before, found.after), strict=True)]
    return [
        "## Cancellations",
        "",
        f"{number} rollouts, waiting or running: {found.deleted} cancelled by DELETE, "
        f"{found.disconnected} by closing the connection, {found.escaped} ended before, "
        f"{found.failed} failed. The server counted {found.counted:.0f}.",
        "",
        *table(["", "in line", "active", "memory, MiB"], rows),
    ]


def _levels(levels: Levels) -> list[str]:
    memory = "-" if levels.memory is None else f"{levels.memory:.1f}"
    return [f"{levels.queue_depth:.0f}", f"{levels.active:.0f}", memory]


def _percentiles(spread: Spread) -> list[str]:
    return [seconds(value) for value in (spread.p50, spread.p90, spread.p95, spread.p99)]
