"""FULL steps by the clock, with a clock that is set by hand."""

from __future__ import annotations

from worldcache.engine.pace import Pacer, budget_policy


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def full_steps(policy: object) -> int | None:
    return getattr(policy.config, "full_steps", None)  # type: ignore[attr-defined]


def test_a_budget_of_all_steps_is_no_cache() -> None:
    assert budget_policy(20, 20).name == "none"
    assert (budget_policy(19, 20).name, full_steps(budget_policy(19, 20))) == ("forecast", 19)


def test_the_time_is_spent_on_full_steps() -> None:
    # 4 chunks in 10 s, a tenth kept back: 9 / 4 = 2.25 s a chunk, 11 calls of .2 s.
    clock = Clock()
    pacer = Pacer(50, fewest=3, call_seconds=0.2, margin=0.1, clock=clock)
    assert full_steps(pacer(4, 10.0)) == 11
    # The chunk took 5.5 s instead of 2.2: a call takes .5. 4.5 s for 3 chunks: .9 * 1.5 / .5 is 2.7.
    clock.now += 5.5
    assert full_steps(pacer(3, 4.5)) == 3
    # Now alone: .1 a call. 4.2 s for 2 chunks: 18.9.
    clock.now += 0.3
    assert full_steps(pacer(2, 4.2)) == 18
    # All the time in the world.
    clock.now += 1.8
    assert pacer(1, 1000.0).name == "none"


def test_without_a_measurement_it_begins_with_the_fewest() -> None:
    clock = Clock()
    pacer = Pacer(50, fewest=4, call_seconds=None, margin=0.0, clock=clock)
    assert full_steps(pacer(2, 100.0)) == 4
    clock.now += 2.0
    assert full_steps(pacer(1, 10.0)) == 20


def test_a_late_rollout_is_not_given_less_than_the_fewest() -> None:
    assert full_steps(Pacer(50, fewest=4, call_seconds=1.0, margin=0.1)(3, -2.0)) == 4
    assert Pacer(3, fewest=4, call_seconds=1.0, margin=0.1)(3, -2.0).name == "none"
