"""The walk through noise levels, on schedules short enough for a pencil."""

import math

import pytest

from worldcache.policies.path import correction_terms, log_snr, place, shrink, streak_terms

FALLING = (1.0, 0.75, 0.5, 0.25)
EVEN = tuple(1 - step / 50 for step in range(50))


def test_log_snr_is_finite_where_nothing_but_noise_is_left():
    # (1 - .75) / 4 stands in for the signal at sigma 1.
    expected = (math.log(0.0625), math.log(1 / 3), 0.0, math.log(3))
    assert log_snr(FALLING, tuple(1 - sigma for sigma in FALLING)) == pytest.approx(expected)
    assert math.isfinite(log_snr((1.0,), (0.0,))[0])


def test_a_step_keeps_its_share_of_the_latent_and_the_last_one_keeps_nothing():
    assert [shrink(FALLING, step) for step in range(4)] == pytest.approx([0.75, 2 / 3, 0.5, 0.0])


def test_places_even_in_sigma_at_a_spacing_of_one():
    # 1 - i * .98 / 4 on a grid of .02: .755 .51 .265 lie nearest to steps 12, 24 (.52, before 25) and 37.
    assert place(EVEN, 5, 1.0) == (0, 12, 24, 37, 49)


def test_a_larger_spacing_crowds_the_end():
    # Square roots from 1 to .1414 in four parts: .7854 .5707 .3561, squared .617 .326 .127.
    assert place(EVEN, 5, 2.0) == (0, 19, 34, 44, 49)


@pytest.mark.parametrize("spacing", [1.0, 2.5, 8.0])
@pytest.mark.parametrize("count", range(1, 51))
def test_a_budget_is_spent_exactly(count: int, spacing: float):
    steps = place(EVEN, count, spacing)
    assert len(steps) == len(set(steps)) == count
    assert steps == tuple(sorted(steps))
    assert steps[0] == 0 and (count == 1 or steps[-1] == 49)


def test_more_steps_than_there_are_is_all_of_them():
    assert place(FALLING, 9, 2.0) == (0, 1, 2, 3)


def test_where_a_streak_leaves_the_latent():
    # From step 0 with coordinates 0 1 2 3. Before step 1 nothing was predicted. Step 1 (r = 2/3) moves by
    # 1/3 of h = 1; step 2 (r = 1/2) halves that and adds 1/2 of h = 2: 1/6 + 1.
    coordinate = (0.0, 1.0, 2.0, 3.0)
    assert streak_terms(FALLING, coordinate, 0, 1) == (0.0, 0.0)
    # The correction enters whole at step 1 and shrinks like any latent: 2/3, then 1/3.
    assert streak_terms(FALLING, coordinate, 0, 2) == pytest.approx((1 / 3, 2 / 3))
    assert streak_terms(FALLING, coordinate, 0, 3) == pytest.approx((1 / 6 + 1, 1 / 3))


def test_what_interpolation_would_have_added():
    # Between 0 and 3: step 1 lies a third of the way and step 2 two thirds.
    # Towards D: 1/3 * 1/3 = 1/9, then 1/2 * 1/9 + 1/2 * 2/3 = 7/18. Along S: as the streak moved, 7/6.
    coordinate = (0.0, 1.0, 2.0, 3.0)
    assert correction_terms(FALLING, coordinate, 0, 3) == pytest.approx((7 / 18, 7 / 6))
    assert correction_terms(FALLING, coordinate, 0, 1) == (0.0, 0.0)
