"""The engine on CUDA: nothing waits for the device but the one read of a tick."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

import worldcache
from tests.engine.listening import Listener, finish
from worldcache.core import Observation
from worldcache.engine.decode import DecodeThread
from worldcache.engine.denoise import ChunkDenoiser
from worldcache.engine.engine import Engine, Tick
from worldcache.engine.rollout import RolloutRequest
from worldcache.engine.thread import EngineThread
from worldcache.models.base import ChunkTask, WorldModel
from worldcache.policies.registry import make_policy
from worldcache.sampler import chunk_generator

pytestmark = pytest.mark.gpu

POLICIES = ("interval", "taylor", "hicache", "worldcache", "forecast")


def request(model: WorldModel, policy: str = "forecast", seed: int = 3) -> RolloutRequest:
    return RolloutRequest(
        Observation(start=model.info.starts[0]), (1,) * 8, make_policy(policy), seed, 20, client="a"
    )


@contextmanager
def waiting_is_an_error() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("policy", POLICIES)
@torch.inference_mode()
def test_a_streak_does_not_wait_for_the_device(cuda: str, policy: str) -> None:
    model = worldcache.load_model("doom", device=cuda)
    context = model.begin(Observation(start=model.info.starts[0]))
    condition = model.condition(context, (1,) * 4, torch.Generator())
    task = ChunkTask(make_policy(policy), condition, 4, 20, 1.0, chunk_generator(3, 0))
    chunk = ChunkDenoiser(model, task)
    while not chunk.done:
        evidence = chunk.take(chunk.view.to_tokens(model.evaluate(chunk.rows()))).tolist()
        with waiting_is_an_error():
            chunk.advance(evidence)
    assert "." in chunk.stats(0).decisions


def test_decoding_on_a_stream_of_its_own_gives_the_same_frames(cuda: str) -> None:
    model = worldcache.load_model("doom", device=cuda)
    (expected,) = finish(Engine(), model, request(model))
    decoder = DecodeThread(torch.device(cuda))
    thread = EngineThread(Engine(later=decoder.submit), decoder)
    thread.start()
    try:
        listeners = [Listener() for _ in range(4)]
        for listener in listeners:
            thread.submit(model, request(model), listener)
        for listener in listeners:
            assert listener.ended.wait(60) and listener.end.status == "succeeded"
            assert listener.decisions == expected.decisions
            assert np.abs(listener.rgb().astype(int) - expected.rgb()).mean() < 0.5
    finally:
        thread.close(30)


def test_ticks_are_timed_by_the_device(cuda: str) -> None:
    model, ticks = worldcache.load_model("doom", device=cuda), list[Tick]()
    finish(Engine(observer=ticks.append), model, request(model), request(model, "none"))
    assert all(0 < tick.calls[0][1] <= tick.seconds * 1.5 for tick in ticks)
