"""Who goes first."""

from __future__ import annotations

import time
from collections.abc import Hashable
from dataclasses import replace
from typing import Any

import pytest

from tests.engine.listening import Listener, finish, request, submit
from tests.toy import ToyWorldModel
from worldcache.core import RolloutStarted
from worldcache.engine.engine import ADMISSION_SECONDS, Engine, Limits, Tick
from worldcache.engine.line import WaitingLine
from worldcache.engine.rollout import Priority, Rollout
from worldcache.models.base import Row


def rollout(client: str, priority: Priority = Priority.STANDARD) -> Rollout:
    return Rollout(ToyWorldModel(), request(client=client, priority=priority), Listener())


def served(line: WaitingLine) -> list[Rollout]:
    order = []
    while (first := line.next()) is not None:
        line.take(first)
        order.append(first)
    return order


def test_clients_take_turns() -> None:
    line, sent = WaitingLine(), {}
    for name in ("a1", "a2", "a3", "b1", "c1", "b2"):
        sent[name] = rollout(name[0])
        line.add(sent[name])
    assert len(line) == 6
    names = {id(one): name for name, one in sent.items()}
    assert [names[id(one)] for one in served(line)] == ["a1", "b1", "c1", "a2", "b2", "a3"]
    assert len(line) == 0


def test_the_urgent_go_first() -> None:
    line = WaitingLine()
    waiting = [rollout("a", priority) for priority in (Priority.IDLE, Priority.BACKGROUND, Priority.STANDARD)]
    urgent = rollout("a", Priority.INTERACTIVE)
    for one in (*waiting, urgent):
        line.add(one)
    assert served(line) == [urgent, *reversed(waiting)]


@pytest.mark.parametrize(("gone", "left"), [(0, 1), (1, 0)], ids=["first", "in the middle"])
def test_one_that_leaves_the_line_costs_its_client_no_turn(gone: int, left: int) -> None:
    line = WaitingLine()
    of_a, b1 = (rollout("a"), rollout("a")), rollout("b")
    for one in (*of_a, b1):
        line.add(one)
    assert line.remove(of_a[gone])
    assert not line.remove(of_a[gone])
    assert served(line) == [of_a[left], b1]


def test_a_flood_of_one_client_does_not_hold_up_another() -> None:
    engine, model = Engine(Limits(max_active=1)), ToyWorldModel()
    flood = submit(engine, model, *(request(frames=4, steps=2, client="a") for _ in range(10)))
    ((_, other),) = submit(engine, model, request(frames=4, steps=2, client="b"))
    while not other.ended.is_set():
        engine.tick()
    assert sum(listener.ended.is_set() for _, listener in flood) <= 1


def test_urgent_rows_come_first_when_a_batch_is_too_small_for_all() -> None:
    model, engine = ToyWorldModel(), Engine(Limits(max_batch=2))
    slow = submit(engine, model, *(request(frames=4, steps=6) for _ in range(4)))
    ((_, urgent),) = submit(engine, model, request(frames=4, steps=6, priority=Priority.INTERACTIVE))
    for _ in range(6):
        engine.tick()
    assert urgent.ended.is_set()
    assert not any(listener.ended.is_set() for _, listener in slow)


def test_no_kind_and_nobody_waits_for_ever_behind_the_urgent() -> None:
    engine, model, other = Engine(Limits(max_batch=2)), ToyWorldModel(), ToyWorldModel()
    other.info = replace(other.info, id="other")
    urgent = Priority.INTERACTIVE
    submit(engine, model, *(request(frames=400, steps=50, priority=urgent) for _ in range(2)))
    ((_, patient),) = submit(engine, model, request(frames=4, steps=5))
    ((_, different),) = submit(engine, other, request(frames=4, steps=5, priority=urgent))
    for _ in range(30):
        engine.tick()
    assert patient.ended.is_set() and different.ended.is_set()


def test_the_urgent_do_not_wait_for_a_place_of_others() -> None:
    engine, model = Engine(Limits(max_active=2)), ToyWorldModel()
    submit(engine, model, *(request(frames=400, steps=50) for _ in range(3)))
    engine.tick()
    ((_, urgent),) = submit(engine, model, request(frames=4, steps=3, priority=Priority.INTERACTIVE))
    for _ in range(3):
        engine.tick()
    assert urgent.ended.is_set()
    assert model.batches == [2, 3, 3, 3]


def test_one_idle_rollout_runs_at_a_time() -> None:
    engine, model = Engine(), ToyWorldModel()
    submit(engine, model, *(request(frames=4, steps=3, priority=Priority.IDLE) for _ in range(3)))
    while not engine.idle:
        engine.tick()
    assert model.batches == [1] * 9


def test_a_slow_beginning_does_not_hold_up_the_steps_of_others() -> None:
    class SlowToBegin(ToyWorldModel):
        begun = 0

        def begin(self, *args: Any) -> Any:
            self.begun += 1
            time.sleep(1.2 * ADMISSION_SECONDS)
            return super().begin(*args)

    engine, model = Engine(), SlowToBegin()
    submit(engine, model, *(request(frames=4, steps=8) for _ in range(3)))
    for begun in (1, 2, 3, 3):
        engine.tick()
        assert model.begun == begun
    assert model.batches == [1, 2, 3, 3]


def test_idle_rollouts_are_computed_only_when_nothing_else_is() -> None:
    model, ticks = ToyWorldModel(), list[Tick]()
    engine = Engine(Limits(max_active=1), ticks.append)
    ((_, idle),) = submit(engine, model, request(frames=4, steps=8, priority=Priority.IDLE))
    engine.tick()
    assert isinstance(idle.events[0], RolloutStarted)
    (normal,) = [listener for _, listener in submit(engine, model, request(frames=4, steps=5))]
    for _ in range(5):
        engine.tick()
    assert normal.end.status == "succeeded"
    assert [tick.rows for tick in ticks] == [1] * 6  # they never shared a call
    while not engine.idle:
        engine.tick()
    assert idle.end.status == "succeeded"


def test_what_runs_at_once_stays_within_the_memory() -> None:
    model = ToyWorldModel()
    need = Rollout(model, request("taylor"), Listener()).memory_bytes
    ticks: list[Tick] = []
    finish(Engine(Limits(max_bytes=2 * need), ticks.append), model, *(request("taylor") for _ in range(5)))
    assert max(tick.rows for tick in ticks) == 2
    ticks.clear()
    listeners = finish(Engine(Limits(max_bytes=1), ticks.append), model, request(), request())
    assert {tick.rows for tick in ticks} == {1}
    assert [listener.end.status for listener in listeners] == ["succeeded"] * 2


def test_guidance_and_longer_memories_need_more() -> None:
    model = ToyWorldModel()

    def need(policy: str, **more: float) -> int:
        return Rollout(model, request(policy, **more), Listener()).memory_bytes

    output = 4 * 16 * 48 * 64
    assert need("none") == 5 * output
    assert need("worldcache") == 7 * output
    assert need("worldcache", guidance_scale=3.0) == 10 * output


class WideWorldModel(ToyWorldModel):
    """Its rows share no call with those of the toy model."""

    def batch_key(self, row: Row) -> Hashable:
        return ("wide", super().batch_key(row))


def test_rows_that_cannot_share_a_call_take_turns() -> None:
    narrow, wide, order = ToyWorldModel(), WideWorldModel(), list[str]()
    narrow.before_evaluate = lambda rows: order.append(f"narrow {len(rows)}")
    wide.before_evaluate = lambda rows: order.append(f"wide {len(rows)}")
    engine = Engine()
    submit(engine, narrow, *(request(frames=4, steps=5, priority=Priority.INTERACTIVE) for _ in range(2)))
    submit(engine, wide, *(request(frames=4, steps=5) for _ in range(3)))
    while not engine.idle:
        engine.tick()
    assert order == ["narrow 2", "wide 3"] * 5
