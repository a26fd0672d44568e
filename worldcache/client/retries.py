"""When to try again. Decisions only: nobody sleeps here."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from worldcache.client.errors import ApiError, InvalidInput

TEMPORARY = (429, 503)
KEY_IN_USE = "idempotency_key_in_use"
"""The first request with a key has not been answered yet: what a retry may meet."""


@dataclass(frozen=True)
class Retries:
    """How patient the client is.

    Attributes:
        count: most repetitions of a request, or of reconnecting between two events of a stream.
        first_delay: seconds before the first repetition; each later one takes twice as long.
        longest_delay: the delay that it ends at.
        budget: seconds after the first failure within which repetitions begin; what would have to wait
            longer is not repeated.
    """

    count: int = 5
    first_delay: float = 0.5
    longest_delay: float = 20.0
    budget: float = 60.0

    def __post_init__(self) -> None:
        if min(self.count, self.first_delay, self.longest_delay, self.budget) < 0:
            raise InvalidInput("the numbers of Retries are 0 or more")


def as_retries(retries: Retries | int | None) -> Retries:
    """How patient a caller is who may have said only how often to repeat, or nothing."""
    if retries is None:
        return Retries()
    return retries if isinstance(retries, Retries) else Retries(count=retries)


class Backoff:
    """The delays of one request.

    Args:
        retries: how patient to be.
        clock: seconds, monotonic.
        jitter: draws from 0 to 1, so that refused clients do not all come back at once.
        within: seconds from now after which nothing is repeated.
    """

    def __init__(
        self,
        retries: Retries,
        clock: Callable[[], float],
        jitter: Callable[[], float],
        within: float | None = None,
    ) -> None:
        self._retries, self._clock, self._jitter = retries, clock, jitter
        self._done, self._failed_at = 0, math.inf
        self._until = math.inf if within is None else clock() + within

    def reset(self) -> None:
        """Begin anew: there was progress."""
        self._done, self._failed_at, self._until = 0, math.inf, math.inf

    def next_delay(self, retry_after: float | None = None) -> float | None:
        """Seconds to the next attempt, never less than ``retry_after``; ``None`` if there is none."""
        now = self._clock()
        self._failed_at = min(self._failed_at, now)
        longest = min(self._retries.longest_delay, self._retries.first_delay * 2.0**self._done)
        delay = (retry_after or 0.0) + longest * (1 + self._jitter()) / 2
        until = min(self._until, self._failed_at + self._retries.budget)
        if self._done >= self._retries.count or now + delay > until:
            return None
        self._done += 1
        return delay


def is_temporary(error: ApiError) -> bool:
    """The same request may be served later."""
    return error.status in TEMPORARY or error.code == KEY_IN_USE


def read_retry_after(value: str | None) -> float | None:
    """Seconds that a ``Retry-After`` header asks for, as a number or a date; ``None`` if it is neither."""
    if not value:
        return None
    if value.isascii() and value.isdecimal():
        return float(value[:10])
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
