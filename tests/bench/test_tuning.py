"""The search for a parameter that hits a number of FULL steps."""

from __future__ import annotations

import math

import pytest

from worldcache.bench.entries import Tune
from worldcache.bench.tuning import OutOfReach, tune, tune_blind


def test_a_whole_number_is_found() -> None:
    assert tune(Tune("interval", 1, 25, 10, integer=True), lambda n: math.ceil(50 / n)) == 5


def test_of_two_that_miss_by_as_much_the_one_with_more_full_steps_is_taken() -> None:
    counts = {3: 13.0, 4: 11.0}
    found = tune(Tune("interval", 1, 6, 12, integer=True), lambda n: counts.get(n, 50.0 if n < 3 else 2.0))
    assert found == 3


def test_a_threshold_is_found_on_a_logarithmic_scale() -> None:
    found = tune(Tune("threshold", 1e-4, 10.0, 12), lambda x: 20 - 4 * math.log10(x / 1e-4))
    assert found == pytest.approx(1e-2, rel=0.2)


def test_what_cannot_be_hit_is_an_error_that_names_the_nearest() -> None:
    with pytest.raises(OutOfReach, match="the nearest is 20"):
        tune(Tune("threshold", 1e-4, 10.0, 7), lambda x: 20.0)


def every(interval: int) -> list[bool]:
    return [step % interval == 0 for step in range(50)]


def test_of_blind_schedules_near_the_target_the_one_that_ends_latest_is_taken() -> None:
    # 5: 10 FULL, the last at 45; 6: 9 FULL, the last at 48
    assert tune_blind(Tune("interval", 1, 25, 10, integer=True, blind=True), every) == 6


def test_without_one_near_the_target_most_full_steps_are_taken() -> None:
    # 2: 25 FULL, too many; 3: 17 FULL
    assert tune_blind(Tune("interval", 1, 25, 21, integer=True, blind=True), every) == 3


def test_a_blind_search_that_always_exceeds_the_target_fails() -> None:
    with pytest.raises(OutOfReach, match="more than 2 FULL"):
        tune_blind(Tune("interval", 1, 5, 2, integer=True, blind=True), every)
