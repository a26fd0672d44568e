"""Buckets of tokens, in time that the test makes."""

from __future__ import annotations

import asyncio

import pytest

from app.ratelimit import InMemoryRateLimiter, Rate


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_then_the_rate() -> None:
    clock = Clock()
    limiter, rate = InMemoryRateLimiter(clock), Rate(per_minute=30, burst=3)  # a token every 2 s

    def take(name: str = "a") -> float:
        return asyncio.run(limiter.take(name, rate))

    assert [take() for _ in range(4)] == [0, 0, 0, 2.0]
    assert take("b") == 0, "each name has a bucket of its own"
    clock.now += 1.5
    assert take() == pytest.approx(0.5), "asking in vain costs nothing"
    clock.now += 0.5
    assert [take(), take()] == [0, 2.0]
    clock.now += 3600
    assert [take() for _ in range(4)] == [0, 0, 0, 2.0], "no more than the burst is saved up"


def test_a_rate_may_change() -> None:
    clock = Clock()
    limiter = InMemoryRateLimiter(clock)
    assert asyncio.run(limiter.take("a", Rate(60, 10))) == 0
    assert asyncio.run(limiter.take("a", Rate(60, 1))) == 0
    assert asyncio.run(limiter.take("a", Rate(60, 1))) == pytest.approx(1.0)
