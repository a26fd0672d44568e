"""What is made of the clock readings: pure functions of numbers."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Spread:
    """Percentiles of a set of times, in seconds; ``nan`` if there were none."""

    count: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    highest: float


def percentile(values: Sequence[float], percent: float) -> float:
    """By linear interpolation between the sorted values; ``nan`` of none."""
    if not values:
        return math.nan
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def spread(values: Sequence[float]) -> Spread:
    """Count, mean, the percentiles that are reported and the maximum."""
    return Spread(
        count=len(values),
        mean=sum(values) / len(values) if values else math.nan,
        p50=percentile(values, 50),
        p90=percentile(values, 90),
        p95=percentile(values, 95),
        p99=percentile(values, 99),
        highest=max(values, default=math.nan),
    )


def completed(spans: Sequence[tuple[float, float]], start: float, end: float) -> float:
    """Rollouts' worth of work done between two times.

    A rollout that reaches beyond counts with the share of its duration that lies between.
    """
    total = 0.0
    for began, ended in spans:
        inside = min(ended, end) - max(began, start)
        if inside > 0:
            total += inside / (ended - began)
    return total


def mixed_rate(rates: Sequence[float]) -> float:
    """Throughput of a mix of equal numbers, from that of each kind alone: the harmonic mean."""
    return len(rates) / sum(1 / rate for rate in rates)


def call_seconds(table: Mapping[int, float], rows: int) -> float:
    """Time of a backbone call, between and beyond the measured sizes along straight lines.

    Args:
        table: seconds by rows; at least one entry.
    """
    if rows in table:
        return table[rows]
    sizes = sorted(table)
    if rows < sizes[0] or len(sizes) == 1:
        return table[sizes[0]] * rows / sizes[0]
    low, high = next(
        ((a, b) for a, b in pairwise(sizes) if a < rows < b),
        (sizes[-2], sizes[-1]),
    )
    slope = (table[high] - table[low]) / (high - low)
    return table[low] + slope * (rows - low)


def calls_seconds(table: Mapping[int, float], sizes: Mapping[int, float]) -> float:
    """Time of many calls, counted by their rows."""
    return sum(count * call_seconds(table, rows) for rows, count in sizes.items())


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the straight line with the least squared error; 0 if there is none."""
    if len(points) < 2:
        return 0.0
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    square = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / square if square else 0.0


def arrivals(rate: float, seconds: float, generator: random.Random) -> list[float]:
    """Times of a Poisson process from 0 on.

    Args:
        rate: expected arrivals a second.
        seconds: where it ends.
    """
    times: list[float] = []
    now = generator.expovariate(rate)
    while now < seconds:
        times.append(now)
        now += generator.expovariate(rate)
    return times
