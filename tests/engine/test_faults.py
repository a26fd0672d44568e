"""What goes wrong stays with the rollout that caused it; what ends leaves nothing behind."""

from __future__ import annotations

import gc
import logging
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.engine.listening import Listener, finish, request, submit
from tests.toy import ToyWorldModel
from worldcache.core import ChunkFinished, Frames
from worldcache.engine.decode import DecodeThread
from worldcache.engine.engine import GOOD_CALLS, Engine, Limits, Tick
from worldcache.engine.rollout import Rollout, RolloutRequest
from worldcache.engine.thread import EngineThread
from worldcache.errors import DeadlineExceeded, OutOfMemory, WorldCacheError
from worldcache.models.base import Row
from worldcache.policies.registry import make_policy

CPU = torch.device("cpu")


@contextmanager
def threaded(limits: Limits | None = None) -> Iterator[EngineThread]:
    """An engine on its thread, with a decode thread of its own, as the service runs it."""
    decoder = DecodeThread(CPU)
    thread = EngineThread(Engine(limits, later=decoder.submit), decoder)
    thread.start()
    try:
        yield thread
    finally:
        thread.close(10)
        assert not thread.alive


def memory_for(most: int, error: Exception) -> ToyWorldModel:
    """A model whose device has memory for ``most`` rows a call."""

    def refuse(rows: Sequence[Row]) -> None:
        if len(rows) > most:
            raise error

    return ToyWorldModel(before_evaluate=refuse)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_out_of_memory_halves_the_batch_before_anyone_fails(error: Exception) -> None:
    model, ticks = memory_for(2, error), list[Tick]()
    listeners = finish(Engine(observer=ticks.append), model, *(request(seed=i) for i in range(8)))
    assert [listener.end.status for listener in listeners] == ["succeeded"] * 8
    assert model.batches[:3] == [8, 4, 2]
    assert model.batches.count(8) == 1 and model.batches.count(4) == 2  # it does not try again every tick
    assert max(rows for tick in ticks for rows, _ in tick.calls) == 2


def test_when_nothing_runs_the_whole_batch_is_tried_again() -> None:
    model, engine = memory_for(2, MemoryError()), Engine()
    finish(engine, model, *(request(seed=i) for i in range(4)))
    model.before_evaluate = lambda rows: None
    finish(engine, model, *(request(seed=i) for i in range(4)))
    assert model.batches[-1] == 4


def test_one_that_does_not_fit_alone_says_so_and_the_next_is_served() -> None:
    engine, model = Engine(), memory_for(1, torch.OutOfMemoryError("CUDA out of memory"))
    guided, plain = finish(engine, model, request(guidance_scale=2.0), request())
    assert isinstance(guided.end.error, OutOfMemory)
    assert guided.end.status == "failed" and guided.end.error.code == "out_of_memory"
    assert plain.end.status == "succeeded"
    assert finish(engine, model, request())[0].end.status == "succeeded"


def test_a_policy_that_raises_fails_alone() -> None:
    policy = make_policy("interval")
    policy.settle = lambda state, evidence: 1 // 0  # type: ignore[method-assign,assignment]
    bad = RolloutRequest(request().observation, (1,) * 4, policy, 0, 6)
    good, broken = finish(Engine(), ToyWorldModel(), request(), bad)
    assert (good.end.status, broken.end.status) == ("succeeded", "failed")
    assert isinstance(broken.end.error, ZeroDivisionError)


class UndecodableWorldModel(ToyWorldModel):
    """Cannot decode what action 3 led to."""

    def decode(self, latent: Tensor) -> Frames:
        if latent.mean() < -2.0:
            raise RuntimeError("cannot be decoded")
        return super().decode(latent)


@pytest.mark.parametrize("frames", [4, 40])
def test_a_chunk_that_cannot_be_decoded_fails_its_rollout_alone(frames: int) -> None:
    with threaded() as thread:
        good, bad = Listener(), Listener()
        model = UndecodableWorldModel()
        thread.submit(model, request(frames=frames, action=3), bad)
        thread.submit(model, request(frames=frames), good)
        assert good.ended.wait(20) and bad.ended.wait(20)
        assert (good.end.status, bad.end.status) == ("succeeded", "failed")
        assert "cannot be decoded" in str(bad.end.error) and not bad.chunks


class SlowToDecode(ToyWorldModel):
    """Decodes only once it is let."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.decoding, self.may_decode = threading.Event(), threading.Event()

    def decode(self, latent: Tensor) -> Frames:
        self.decoding.set()
        assert self.may_decode.wait(20)
        return super().decode(latent)


@pytest.mark.parametrize("broken", ["batch_key", "latent_shape", "tokens"])
def test_a_model_that_cannot_say_what_a_rollout_needs_fails_it_alone(broken: str) -> None:
    def refuse(*args: object) -> object:
        raise RuntimeError("a bug")

    engine, good, bad = Engine(Limits(max_bytes=10**9)), ToyWorldModel(), ToyWorldModel()
    setattr(bad, broken, refuse)
    ((_, fine),) = submit(engine, good, request(frames=4))
    ((_, failed),) = submit(engine, bad, request(frames=4))
    while not engine.idle:
        engine.tick()
    assert (fine.end.status, failed.end.status) == ("succeeded", "failed")


def test_a_model_that_returns_too_few_rows_fails_what_it_evaluated() -> None:
    class Forgetful(ToyWorldModel):
        def evaluate(self, rows: Sequence[Row]) -> Tensor:
            return super().evaluate(rows)[:-1] if rows[0].condition[0] == 3 else super().evaluate(rows)

    engine, model, other = Engine(), Forgetful(), ToyWorldModel()
    other.info = replace(other.info, id="other")
    pairs = submit(engine, model, request(frames=4, action=3), request(frames=4))
    pairs += submit(engine, other, request(frames=4))
    while not engine.idle:
        engine.tick()
    assert [listener.end.status for _, listener in pairs] == ["failed", "succeeded", "succeeded"]


def test_nobody_notices_an_observer_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    def fail(tick: Tick) -> None:
        raise RuntimeError("nothing can be written down")

    (listener,) = finish(Engine(observer=fail), ToyWorldModel(), request())
    assert listener.end.status == "succeeded"
    assert "nothing can be written down" in caplog.text


def test_a_listener_that_fails_ends_nobody(caplog: pytest.LogCaptureFixture) -> None:
    def fail(event: object) -> None:
        raise RuntimeError("nobody listens")

    with threaded() as thread:
        model, listener = ToyWorldModel(), Listener()
        thread.submit(model, request(frames=4), fail)
        thread.submit(model, request(frames=4), listener)
        assert listener.ended.wait(20) and thread.alive
    assert listener.end.status == "succeeded"
    assert "nobody listens" in caplog.text


def test_an_error_keeps_no_memory_of_where_it_was_raised(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "worldcache.engine.engine")  # the test's own log keeps tracebacks
    kept: list[weakref.ref[Tensor]] = []

    def refuse(rows: Sequence[Row]) -> None:
        activations = torch.zeros(8)
        kept.append(weakref.ref(activations))
        raise torch.OutOfMemoryError("CUDA out of memory")

    gc.disable()
    try:
        (listener,) = finish(Engine(), ToyWorldModel(before_evaluate=refuse), request())
        assert isinstance(listener.end.error, OutOfMemory)
        assert listener.end.error.__cause__ is not None
        assert [reference() for reference in kept] == [None]
    finally:
        gc.enable()


def test_a_batch_that_was_halved_grows_again() -> None:
    most = [2]

    def refuse(rows: Sequence[Row]) -> None:
        if len(rows) > most[0]:
            raise torch.OutOfMemoryError("CUDA out of memory")

    engine, model = Engine(Limits(max_batch=4)), ToyWorldModel(before_evaluate=refuse)
    submit(engine, model, *(request(frames=4000, steps=50) for _ in range(4)))
    engine.tick()
    assert model.batches == [4, 2, 2]
    most[0] = 4
    for _ in range(GOOD_CALLS):
        engine.tick()
    assert set(model.batches[3 : GOOD_CALLS + 1]) == {2} and model.batches[-1] == 4


def test_a_closed_thread_takes_no_more_and_has_answered_all() -> None:
    decoder = DecodeThread(CPU)
    thread = EngineThread(Engine(later=decoder.submit), decoder)
    thread.start()
    model, listener = ToyWorldModel(delay=0.05), Listener()
    thread.submit(model, request(frames=4000), listener)
    answers = [thread.call(lambda: 1) for _ in range(20)]
    thread.close(20)
    assert [answer.result(0) for answer in answers] == [1] * 20
    assert listener.ended.is_set() and listener.end.status == "cancelled"
    assert not thread.alive and not decoder.alive
    with pytest.raises(WorldCacheError, match="closed"):
        thread.call(lambda: 1)


def test_decoding_does_not_hold_up_the_next_ticks() -> None:
    with threaded() as thread:
        model, listener = SlowToDecode(), Listener()
        thread.submit(model, request(frames=12, steps=5), listener)
        while len(model.batches) < 15:  # three chunks are denoised while the first waits
            time.sleep(0.005)
        assert not listener.chunks
        model.may_decode.set()
        assert listener.ended.wait(20)
        assert [chunk.first_frame for chunk in listener.chunks] == [0, 4, 8]
        assert listener.end.stats.first_frame_seconds is not None
        assert listener.end.stats.steps_total == 15


def test_a_cancelled_rollout_hands_out_nothing_more() -> None:
    with threaded() as thread:
        model, listener = SlowToDecode(), Listener()
        rollout = thread.submit(model, request(frames=400, steps=2), listener)
        while len(model.batches) < 6:
            time.sleep(0.005)
        assert thread.cancel(rollout).result(10)
        model.may_decode.set()
        assert listener.ended.wait(20)
        assert listener.end.status == "cancelled"
        assert len([event for event in listener.events if isinstance(event, ChunkFinished)]) <= 1


def test_a_deadline_that_passes_ends_the_rollout_wherever_it_is() -> None:
    model, engine = ToyWorldModel(), Engine(Limits(max_active=1))
    soon = time.monotonic() + 0.05
    pairs = submit(engine, model, *(request(frames=400, steps=50, deadline=soon) for _ in range(2)))
    engine.tick()
    time.sleep(0.06)
    engine.tick()
    assert engine.idle
    for _, listener in pairs:
        assert listener.end.status == "cancelled"
        assert isinstance(listener.end.error, DeadlineExceeded)
    assert len(model.batches) == 1


def test_the_pace_chooses_the_policy_of_each_chunk() -> None:
    asked: list[tuple[int, float]] = []

    def pace(chunks: int, seconds: float) -> object:
        asked.append((chunks, seconds))
        return make_policy("interval", interval=len(asked))

    late = time.monotonic() + 1000
    (listener,) = finish(Engine(), ToyWorldModel(), request(frames=10, steps=4, deadline=late, pace=pace))
    assert listener.decisions == ["FFFF", "F.F.", "F..F"]
    assert [chunks for chunks, _ in asked] == [3, 2, 1]
    assert all(0 < seconds <= 1000 for _, seconds in asked)


def test_the_observer_hears_of_every_tick() -> None:
    model, ticks = ToyWorldModel(delay=0.001), list[Tick]()
    finish(Engine(observer=ticks.append), model, request(), request("interval", interval=2))
    assert [tick.rows for tick in ticks] == model.batches
    assert all(tick.model == "toy" and len(tick.calls) == 1 for tick in ticks)
    assert all(0.001 <= tick.calls[0][1] <= tick.seconds for tick in ticks)


def test_a_tick_reads_the_device_once_for_all_rollouts(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    for name in ("tolist", "item", "cpu", "numpy", "__bool__", "__float__", "__int__"):
        original = getattr(torch.Tensor, name)

        def counted(self: Tensor, *args: object, _original: object = original, _name: str = name) -> object:
            reads.append(_name)
            return _original(self, *args)  # type: ignore[operator]

        monkeypatch.setattr(torch.Tensor, name, counted)
    engine, model = Engine(), ToyWorldModel()
    policies = ("none", "worldcache", "forecast", "taylor", "hicache", "interval")
    submit(engine, model, *(request(name, frames=4, steps=100) for name in policies))  # none ends soon
    engine.tick()
    for _ in range(4):
        reads.clear()
        engine.tick()
        assert reads == ["tolist"]


def test_a_thousand_cancelled_rollouts_leave_nothing() -> None:
    with threaded(Limits(max_active=8)) as thread:
        model = ToyWorldModel()
        kept: list[weakref.ref[Rollout]] = []
        for index in range(1000):
            listener = Listener()
            rollout = thread.submit(model, request("worldcache", frames=80, steps=20), listener)
            if index % 3:
                thread.call(lambda: None).result(10)  # let some of them start
            thread.cancel(rollout).result(10)
            kept.append(weakref.ref(rollout))
        assert listener.ended.wait(10)
        del rollout, listener
        thread.call(lambda: None).result(10)
        gc.collect()
        assert sum(reference() is not None for reference in kept) == 0
        assert not [entry for entry in gc.get_objects() if type(entry).__name__ == "ChunkDenoiser"]
