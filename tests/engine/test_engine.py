"""The engine: batches, isolation, failures that stay alone, cancellation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from tests.engine.listening import CENTRE, Listener, finish, request
from tests.toy import ToyWorldModel
from worldcache.core import ChunkFinished, Observation, RolloutEnded, RolloutStarted
from worldcache.engine.engine import Engine, Limits, Tick
from worldcache.engine.rollout import Rollout, RolloutRequest
from worldcache.engine.thread import EngineThread
from worldcache.errors import WorldCacheError
from worldcache.models.base import Row
from worldcache.policies.registry import make_policy


def test_events_come_in_order_and_add_up() -> None:
    (listener,) = finish(Engine(), ToyWorldModel(), request("interval", frames=6, interval=3))
    kinds = [type(event) for event in listener.events]
    assert kinds == [RolloutStarted, ChunkFinished, ChunkFinished, RolloutEnded]
    stats = listener.end.stats
    assert [chunk.decisions for chunk in stats.chunks] == ["F..F..", "F..F.."]
    assert (stats.steps_total, stats.steps_full, stats.steps_cached) == (12, 4, 8)
    assert stats.skip_ratio == pytest.approx(8 / 12)


def test_a_horizon_that_is_no_multiple_of_the_chunk_drops_the_surplus() -> None:
    (listener,) = finish(Engine(), ToyWorldModel(), request(frames=6))
    assert [len(chunk.frames["rgb"]) for chunk in listener.chunks] == [4, 2]
    assert [chunk.first_frame for chunk in listener.chunks] == [0, 4]


def test_different_policies_and_step_counts_share_a_batch() -> None:
    model = ToyWorldModel()
    calls: list[Tick] = []
    finish(
        Engine(observer=calls.append),
        model,
        request("none", steps=5),
        request("interval", steps=9, interval=3),
        request("worldcache", steps=12),
    )
    assert model.batches[0] == 3
    assert [call.rows for call in calls] == model.batches
    # FULL steps of all: 2 chunks each of 5, 3 and the policy's own
    assert sum(model.batches) >= 2 * (5 + 3 + 5)


def test_max_batch_bounds_a_call_and_nobody_starves() -> None:
    model = ToyWorldModel()
    listeners = finish(Engine(Limits(max_batch=2)), model, *(request(seed=i) for i in range(5)))
    assert max(model.batches) == 2
    assert all(listener.end.status == "succeeded" for listener in listeners)


def test_max_active_makes_others_wait() -> None:
    engine, model, listeners = Engine(Limits(max_active=1)), ToyWorldModel(), [Listener(), Listener()]
    for listener in listeners:
        engine.submit(Rollout(model, request(frames=4, steps=3), listener))
    engine.tick()
    assert listeners[0].events and not listeners[1].events
    while not engine.idle:
        engine.tick()
    assert [listener.end.status for listener in listeners] == ["succeeded", "succeeded"]


def test_neighbours_change_nothing() -> None:
    mixed = [
        request("worldcache", seed=3, steps=12),
        request("none", seed=4),
        request("taylor", seed=5, steps=9),
    ]
    together = finish(Engine(), ToyWorldModel(), *mixed)
    for one, listener in zip(mixed, together, strict=True):
        (alone,) = finish(Engine(), ToyWorldModel(), one)
        assert np.array_equal(alone.rgb(), listener.rgb())
        assert [c.stats.decisions for c in alone.chunks] == [c.stats.decisions for c in listener.chunks]


def test_a_row_that_breaks_the_batch_fails_alone() -> None:
    def refuse(rows: Sequence[Row]) -> None:
        if any(row.condition[0] == 3 for row in rows):
            raise RuntimeError("out of memory")

    model = ToyWorldModel(before_evaluate=refuse)
    bad = RolloutRequest(CENTRE, (3,) * 4, make_policy("none"), 0, 4)
    first, broken, last = finish(Engine(), model, request(), bad, request(seed=9))
    assert (first.end.status, broken.end.status, last.end.status) == ("succeeded", "failed", "succeeded")
    assert "out of memory" in str(broken.end.error)


def test_a_value_that_is_not_finite_fails_alone() -> None:
    class Poisoned(ToyWorldModel):
        def evaluate(self, rows: Sequence[Row]) -> torch.Tensor:
            outputs = super().evaluate(rows)
            for index, row in enumerate(rows):
                if row.condition[0] == 3:
                    outputs[index, 0, 0, 0, 0] = float("nan")
            return outputs

    bad = RolloutRequest(CENTRE, (3,) * 4, make_policy("worldcache"), 0, 8)
    good, broken = finish(Engine(), Poisoned(), request(), bad)
    assert good.end.status == "succeeded"
    assert broken.end.status == "failed"
    assert "not finite" in str(broken.end.error)


def test_a_bad_observation_fails_alone() -> None:
    bad = RolloutRequest(Observation(start="nowhere"), (0,), make_policy("none"), 0, 4)
    good, broken = finish(Engine(), ToyWorldModel(), request(), bad)
    assert good.end.status == "succeeded"
    assert "nowhere" in str(broken.end.error)


def test_cancelling_drops_a_rollout_between_ticks() -> None:
    engine, model, listener = Engine(), ToyWorldModel(), Listener()
    rollout = Rollout(model, request(), listener)
    engine.submit(rollout)
    engine.tick()
    assert engine.cancel(rollout)
    assert engine.idle
    assert listener.end.status == "cancelled"
    assert not engine.cancel(rollout)


def test_thread_runs_rollouts_and_closes() -> None:
    thread = EngineThread(Engine())
    thread.start()
    model, listener = ToyWorldModel(), Listener()
    thread.submit(model, request(), listener)
    assert listener.ended.wait(10)
    assert listener.end.status == "succeeded"
    assert thread.call(lambda: 3).result(10) == 3
    with pytest.raises(ZeroDivisionError):
        thread.call(lambda: 1 // 0).result(10)
    thread.close(10)
    assert not thread.alive
    with pytest.raises(WorldCacheError, match="closed"):
        thread.submit(model, request(), listener)


def test_cancelling_on_the_thread_takes_one_backbone_call() -> None:
    thread = EngineThread(Engine())
    thread.start()
    model, listener = ToyWorldModel(delay=0.05), Listener()
    rollout = thread.submit(model, request(frames=400, steps=50), listener)
    assert thread.cancel(rollout).result(10)
    calls = len(model.batches)
    assert listener.end.status == "cancelled"
    thread.close(10)
    assert len(model.batches) == calls


def test_closing_cancels_what_runs() -> None:
    thread = EngineThread(Engine())
    thread.start()
    listener = Listener()
    thread.submit(ToyWorldModel(delay=0.02), request(frames=400, steps=50), listener)
    thread.close(10)
    assert listener.end.status == "cancelled"
