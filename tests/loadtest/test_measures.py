"""What is made of clock readings, worked out by hand."""

from __future__ import annotations

import math
import random

import pytest

from app.loadtest.measures import (
    arrivals,
    call_seconds,
    calls_seconds,
    completed,
    mixed_rate,
    percentile,
    slope,
    spread,
)


def test_percentiles_lie_between_the_sorted_values() -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], 50) == 2.5
    assert percentile([1.0, 2.0, 3.0], 95) == pytest.approx(2.9)  # place 1.9: 2 + 0.9 (3 - 2)
    assert percentile([7.0], 99) == 7.0
    assert math.isnan(percentile([], 50))


def test_a_spread_of_nothing_says_so() -> None:
    nothing = spread([])
    assert nothing.count == 0
    assert math.isnan(nothing.mean) and math.isnan(nothing.highest)
    some = spread([1.0, 3.0])
    assert (some.count, some.mean, some.p50, some.highest) == (2, 2.0, 2.0, 3.0)


def test_work_beyond_the_window_counts_with_its_share() -> None:
    # whole, its second half (2 of 4 s), its first quarter (1 of 4 s), and one that lies outside
    spans = [(1.0, 3.0), (-2.0, 2.0), (9.0, 13.0), (11.0, 12.0)]
    assert completed(spans, 0.0, 10.0) == pytest.approx(1 + 0.5 + 0.25)


def test_the_rate_of_a_mix_is_the_harmonic_mean() -> None:
    # one of each takes 1/1 + 1/4 s: 2 rollouts in 1.25 s
    assert mixed_rate([1.0, 4.0]) == pytest.approx(1.6)


def test_calls_between_measured_sizes_lie_on_straight_lines() -> None:
    table = {1: 1.0, 2: 1.5, 4: 2.5}
    assert [call_seconds(table, rows) for rows in (1, 2, 3, 4, 6)] == [1.0, 1.5, 2.0, 2.5, 3.5]
    assert call_seconds({2: 1.0}, 6) == 3.0
    assert calls_seconds(table, {1: 2, 3: 10}) == pytest.approx(2 * 1.0 + 10 * 2.0)


def test_the_slope_is_that_of_a_line() -> None:
    assert slope([(0.0, 5.0), (1.0, 7.0), (2.0, 9.0)]) == pytest.approx(2.0)
    assert slope([(0.0, 1.0), (1.0, 0.0), (2.0, 1.0)]) == pytest.approx(0.0)
    assert slope([(3.0, 4.0)]) == 0.0


def test_arrivals_come_in_order_at_about_their_rate() -> None:
    times = arrivals(5.0, 400.0, random.Random(0))
    assert times == sorted(times)
    assert 0 < times[0] and times[-1] < 400
    assert len(times) == pytest.approx(2000, abs=200)  # its standard deviation is 45
    assert times == arrivals(5.0, 400.0, random.Random(0))
