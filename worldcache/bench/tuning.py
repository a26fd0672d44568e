"""Finds the value of a parameter at which a given number of steps is FULL."""

from __future__ import annotations

import math
from collections.abc import Callable

from worldcache.bench.entries import Tune
from worldcache.errors import WorldCacheError

CLOSE = 0.4
"""Steps from the target at which the search ends."""

FAR = 2.0
"""Steps from the target at which it has failed."""

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


def _middle(low: float, high: float, integer: bool) -> float:
    return (int(low) + int(high)) // 2 if integer else math.sqrt(low * high)
