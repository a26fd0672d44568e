"""What is expected of ticks that have not happened, by hand."""

from __future__ import annotations

import pytest

from worldcache.engine.cost import CostModel, Work
from worldcache.engine.engine import Limits, Tick


def learnt(**sizes: float) -> CostModel:
    """A model ``m`` whose ticks of ``r<rows>`` rows took so many seconds."""
    cost = CostModel()
    for name, seconds in sizes.items():
        cost.observe(tick(int(name[1:]), seconds))
    return cost


def tick(rows: int, seconds: float, model: str = "m") -> Tick:
    return Tick(model, ((rows, seconds * 0.9),), seconds)


def test_nothing_is_known_before_the_first_tick() -> None:
    assert CostModel().tick_seconds("m", 1) is None
    assert CostModel().end_times([Work("m", 1, 5)], [], Limits()) is None
    assert CostModel().end_times([], [], Limits()) == []


def test_between_sizes_it_is_interpolated_and_beyond_them_it_grows() -> None:
    cost = learnt(r2=0.1, r6=0.3)
    expected = {1: 0.1, 2: 0.1, 3: 0.15, 4: 0.2, 6: 0.3, 12: 0.6}
    assert {rows: cost.tick_seconds("m", rows) for rows in expected} == pytest.approx(expected)


def test_the_mean_follows_and_a_halved_batch_teaches_nothing() -> None:
    cost = learnt(r1=0.1)
    cost.observe(tick(1, 0.2))
    assert cost.tick_seconds("m", 1) == pytest.approx(0.12)
    cost.observe(Tick("m", ((1, 5.0), (1, 5.0)), 10.0))
    assert cost.tick_seconds("m", 2) == pytest.approx(0.24)


def test_rollouts_that_run_together_share_the_ticks() -> None:
    # Two rows take .15 and one .1: ten rounds for the first, then ten more calls of the second alone.
    cost = learnt(r1=0.1, r2=0.15)
    ends = cost.end_times([Work("m", 1, 10), Work("m", 1, 20)], [], Limits())
    assert ends == pytest.approx([1.5, 2.5])


def test_more_rows_than_a_batch_take_turns() -> None:
    # Four rows of two rollouts in calls of two: a round is two calls.
    ends = learnt(r2=0.1).end_times([Work("m", 2, 10), Work("m", 2, 10)], [], Limits(max_batch=2))
    assert ends == pytest.approx([2.0, 2.0])


def test_who_waits_starts_when_another_ends() -> None:
    cost = learnt(r1=0.1)
    ends = cost.end_times([Work("m", 1, 10)], [Work("m", 1, 5), Work("m", 1, 1)], Limits(max_active=1))
    assert ends == pytest.approx([1.0, 1.5, 1.6])


def test_models_on_one_device_take_turns() -> None:
    cost = learnt(r1=0.1)
    cost.observe(tick(1, 0.4, model="n"))
    ends = cost.end_times([Work("m", 1, 2), Work("n", 1, 4)], [], Limits())
    assert ends == pytest.approx([1.0, 1.8])
