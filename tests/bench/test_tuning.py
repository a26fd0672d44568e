"""The search for a parameter that hits a number of FULL steps."""

from __future__ import annotations

import math

import pytest

from worldcache.bench.entries import Tune
from worldcache.bench.tuning import OutOfReach, tune


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
