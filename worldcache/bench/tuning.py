"""Finds the value of a parameter at which a given number of steps is FULL."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from worldcache.bench.entries import Tune
from worldcache.errors import WorldCacheError

CLOSE = 0.4
"""Steps from the target at which the search ends."""

FAR = 2.0
"""Steps from the target at which it has failed."""

SPARE = 1
"""Steps by which a whole number may miss the target."""

TRIES = 12


class OutOfReach(WorldCacheError):
    """No value of the parameter comes near the number of FULL steps."""


def tune(search: Tune, count: Callable[[float], float]) -> float:
    """The value whose count of FULL steps is nearest to the target.

    Args:
        search: the parameter and its range.
        count: FULL steps per chunk at a value; falls as the value grows.

    Raises:
        OutOfReach: the nearest value misses the target by more than ``FAR`` steps.
    """
    low, high = search.low, search.high
    best, nearest = math.nan, math.inf
    for _ in range(TRIES):
        value = _middle(low, high, search.integer)
        full = count(value)
        miss, least = abs(full - search.target), abs(nearest - search.target)
        if miss < least or (miss == least and full > nearest):
            best, nearest = value, full
        if abs(full - search.target) <= CLOSE:
            break
        if full > search.target:
            low = value + 1 if search.integer else value
        else:
            high = value - 1 if search.integer else value
        if low > high:
            break
    if abs(nearest - search.target) > FAR:
        raise OutOfReach(
            f"{search.parameter} between {search.low:g} and {search.high:g} does not give "
            f"{search.target:g} FULL steps; the nearest is {nearest:g}"
        )
    return best


def tune_blind(search: Tune, schedule: Callable[[int], Sequence[bool]]) -> int:
    """The whole number whose schedule suits the target best.

    Of those within ``SPARE`` FULL steps of the target the one whose last FULL step is latest, since the
    last steps decide much; else the one with most FULL steps that does not exceed the target by more.

    Args:
        search: the parameter and its range.
        schedule: which steps are FULL at a value.

    Raises:
        OutOfReach: every value exceeds the target.
    """
    found = {}
    for value in range(int(search.low), int(search.high) + 1):
        steps = [index for index, full in enumerate(schedule(value)) if full]
        if len(steps) <= search.target + SPARE:
            found[value] = (len(steps), steps[-1])
    if not found:
        raise OutOfReach(
            f"{search.parameter} up to {search.high:g} gives more than {search.target:g} FULL steps"
        )
    near = [value for value, (full, _) in found.items() if full >= search.target - SPARE]
    if near:
        return max(near, key=lambda v: (found[v][1], -abs(found[v][0] - search.target), found[v][0]))
    return max(found, key=lambda v: found[v])


def _middle(low: float, high: float, integer: bool) -> float:
    return (int(low) + int(high)) // 2 if integer else math.sqrt(low * high)
