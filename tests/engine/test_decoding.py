"""Chunks on their way to frames: what may pass them, what waits for them, and what ends meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from tests.engine.listening import Listener, finish, request, submit
from tests.engine.test_faults import CPU, SlowToDecode, threaded
from tests.toy import ToyWorldModel
from worldcache.core import ChunkFinished, Frames, RolloutEvent
from worldcache.engine.decode import DecodeThread, Job
from worldcache.engine.engine import Engine
from worldcache.engine.rollout import CHUNKS_AHEAD, Priority, Rollout
from worldcache.errors import DeadlineExceeded, OutOfMemory


class Follower(SlowToDecode):
    """Goes on from the frames of the chunk before."""

    goes_on_from_frames: ClassVar[bool] = True

    def advance(self, context: Any, latent: Tensor, decoded: Any, actions: Sequence[Any]) -> Any:
        return decoded

    def condition(self, context: Any, actions: Sequence[Any], generator: torch.Generator) -> tuple[int, ...]:
        if hasattr(context, "last"):
            assert context.ready, "the engine waits for frames"
            context.last()
        return super().condition(context, actions, generator)


def until(check: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_a_rollout_that_is_being_decoded_can_be_cancelled() -> None:
    with threaded() as thread:
        model, listener = SlowToDecode(), Listener()
        rollout = thread.submit(model, request(frames=8, steps=2), listener)
        assert model.decoding.wait(20)
        until(lambda: len(model.batches) == 4)
        assert thread.cancel(rollout).result(10)
        assert listener.ended.wait(1)  # nothing has been decoded
        model.may_decode.set()
        assert not thread.cancel(rollout).result(10)
    assert listener.end.status == "cancelled" and not listener.chunks


def test_a_deadline_that_passes_while_others_are_decoded_ends_a_rollout() -> None:
    with threaded() as thread:
        model, first, late = SlowToDecode(), Listener(), Listener()
        thread.submit(model, request(frames=4, steps=2), first)
        assert model.decoding.wait(20)
        deadline = time.monotonic() + 0.3
        thread.submit(model, request(frames=4, steps=2, deadline=deadline), late)
        until(lambda: len(model.batches) == 4)
        until(lambda: time.monotonic() > deadline)
        model.may_decode.set()
        assert first.ended.wait(20) and late.ended.wait(20)
    assert first.end.status == "succeeded"
    assert late.end.status == "cancelled" and isinstance(late.end.error, DeadlineExceeded)
    assert not late.chunks


def test_a_rollout_does_not_run_far_ahead_of_its_frames_and_others_go_on() -> None:
    with threaded() as thread:
        slow, quick = SlowToDecode(), ToyWorldModel()
        thread.submit(slow, request(frames=80, steps=1), Listener())
        until(lambda: len(slow.batches) == CHUNKS_AHEAD)
        thread.submit(quick, request(frames=4, steps=20), Listener())
        until(lambda: len(quick.batches) == 20)
        assert len(slow.batches) == CHUNKS_AHEAD
        slow.may_decode.set()
        until(lambda: len(slow.batches) == 20)


def test_a_model_that_goes_on_from_frames_does_not_hold_up_others() -> None:
    with threaded() as thread:
        model, other, listener = Follower(), ToyWorldModel(), Listener()
        thread.submit(model, request(frames=12, steps=2), listener)
        assert model.decoding.wait(20)
        thread.submit(other, request(frames=4, steps=20), Listener())
        until(lambda: len(other.batches) == 20)
        assert len(model.batches) == 2
        model.may_decode.set()
        assert listener.ended.wait(20)
    assert listener.end.status == "succeeded" and len(listener.chunks) == 3


def test_a_model_that_goes_on_from_frames_needs_no_thread() -> None:
    model = Follower()
    model.may_decode.set()
    (listener,) = finish(Engine(), model, request(frames=12, steps=2))
    assert listener.end.status == "succeeded" and len(listener.chunks) == 3


def test_urgent_chunks_are_decoded_first() -> None:
    heard: list[str] = []
    with threaded() as thread:
        model = SlowToDecode()

        def send(name: str, priority: Priority) -> None:
            def listen(event: RolloutEvent) -> None:
                if isinstance(event, ChunkFinished):
                    heard.append(name)

            thread.submit(model, request(frames=4, steps=1, priority=priority), listen)

        send("first", Priority.STANDARD)
        assert model.decoding.wait(20)
        send("second", Priority.STANDARD)
        send("urgent", Priority.INTERACTIVE)
        until(lambda: sum(model.batches) == 3)
        thread.call(lambda: None).result(20)  # the tick is over
        model.may_decode.set()
        until(lambda: len(heard) == 3)
    assert heard == ["first", "urgent", "second"]


def test_jobs_run_by_priority_and_then_in_order() -> None:
    decoder, ran, gate = DecodeThread(CPU), list[str](), threading.Event()

    def job(name: str) -> Job:
        return lambda: ran.append(name)

    decoder.start()
    decoder.submit(lambda: gate.wait(20) and None, 0)
    for name, priority in (("b1", 2), ("a1", 1), ("b2", 2), ("a2", 1)):
        decoder.submit(job(name), priority)
    gate.set()
    decoder.close(20)
    assert ran == ["a1", "a2", "b1", "b2"]


def test_the_thread_survives_a_job_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    decoder, ran = DecodeThread(CPU), threading.Event()
    decoder.start()
    decoder.submit(lambda: [][0])
    decoder.submit(ran.set)
    assert ran.wait(20) and decoder.alive
    decoder.close(20)
    assert not decoder.alive
    assert "IndexError" in caplog.text


@pytest.mark.parametrize("chunks", [1, 3])
def test_memory_that_is_missing_for_the_frames_has_its_name_in_every_chunk(chunks: int) -> None:
    class Greedy(ToyWorldModel):
        def decode(self, latent: Tensor) -> Frames:
            raise torch.OutOfMemoryError("CUDA out of memory")

    (listener,) = finish(Engine(), Greedy(), request(frames=4 * chunks))
    assert listener.end.status == "failed" and isinstance(listener.end.error, OutOfMemory)


def test_an_own_denoiser_is_closed_once_whatever_happens() -> None:
    closed: list[int] = []

    class Closing:
        """The engine's own denoiser, as a model's that counts and cannot be closed."""

        def __init__(self, inner: Any) -> None:
            self._inner = inner

        def __getattr__(self, name: str) -> Any:
            return getattr(self._inner, name)

        def close(self) -> None:
            closed.append(1)
            raise RuntimeError("cannot be closed")

    class Own(ToyWorldModel):
        def own_denoiser(self, task: Any) -> Any:
            from worldcache.engine.denoise import ChunkDenoiser

            return Closing(ChunkDenoiser(self, task))

    engine, model = Engine(), Own()
    (whole,) = finish(engine, model, request(frames=12, steps=2))
    assert whole.end.status == "succeeded" and len(closed) == 3
    ((rollout, dropped),) = submit(engine, model, request(frames=12, steps=5))
    engine.tick()
    assert engine.cancel(rollout)
    assert dropped.end.status == "cancelled" and len(closed) == 4


def test_a_listener_that_ends_a_neighbour_during_a_tick_ends_it_once() -> None:
    engine, model, second = Engine(), ToyWorldModel(), Listener()
    other = Rollout(model, request(frames=4, steps=2), second)

    def first(event: object) -> None:
        engine.cancel(other)

    engine.submit(Rollout(model, request(frames=4, steps=1), first))
    engine.submit(other)
    while not engine.idle:
        engine.tick()
    assert [type(event).__name__ for event in second.events].count("RolloutEnded") == 1
    assert second.end.status == "cancelled"
