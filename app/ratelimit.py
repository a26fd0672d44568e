"""How many requests a key may send: a bucket of tokens, behind an interface that a shared store can serve."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Rate:
    """Requests a minute, and how many may come at once after a pause."""

    per_minute: float
    burst: int


class RateLimiter(Protocol):
    """Counts requests by name. Asynchronous, for backends on a network."""

    async def take(self, name: str, rate: Rate) -> float:
        """Take a token.

        Args:
            name: whose.
            rate: at which tokens come back; may change from call to call.

        Returns:
            0 if there was one, or else the seconds until there is.
        """


class InMemoryRateLimiter:
    """Token buckets of this process.

    Args:
        clock: seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}

    async def take(self, name: str, rate: Rate) -> float:
        now, per_second = self._clock(), rate.per_minute / 60
        tokens, since = self._buckets.get(name, (float(rate.burst), now))
        tokens = min(float(rate.burst), tokens + (now - since) * per_second)
        missing = max(0.0, 1 - tokens)
        self._buckets[name] = (tokens if missing else tokens - 1, now)
        return missing / per_second
