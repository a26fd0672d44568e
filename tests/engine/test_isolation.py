"""A rollout's frames do not depend on its neighbours, on a real network and in any mix."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.listening import Listener, finish, request, submit
from tests.tiny import load_tiny_model
from worldcache.bench.wrapper import BenchWorldModel
from worldcache.engine.engine import Engine, Limits
from worldcache.engine.rollout import RolloutRequest
from worldcache.models.base import WorldModel

POLICIES: dict[str, dict[str, Any]] = {
    "none": {},
    "interval": {"interval": 3},
    "taylor": {"interval": 3, "order": 2},
    "hicache": {"interval": 4},
    "easycache": {"threshold": 0.3, "warmup_steps": 3},
    "magcache": {"ratios": [0.99] * 12, "retention": 0.2},
    "worldcache": {"warmup_steps": 3, "drift_threshold": 2.0},
    "forecast": {"full_steps": 5},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> WorldModel:
    """The pictures are handed out before they are rounded, which would hide a difference."""
    return BenchWorldModel(load_tiny_model(tmp_path_factory.mktemp("tiny")))


@st.composite
def requests(draw: st.DrawFn) -> RolloutRequest:
    name = draw(st.sampled_from(sorted(POLICIES)))
    return request(
        name,
        frames=draw(st.integers(1, 6)),
        seed=draw(st.integers(0, 2**62)),
        steps=draw(st.integers(1, 9)),
        action=draw(st.integers(0, 3)),
        guidance_scale=draw(st.sampled_from([1.0, 1.0, 2.0])),
        **POLICIES[name],
    )


def assert_same(one: Listener, other: Listener) -> None:
    """Equal decisions, and pictures within 1e-5 of their range, as far as both got."""
    count = min(len(one.chunks), len(other.chunks))
    assert one.decisions[:count] == other.decisions[:count]
    for mine, theirs in zip(one.chunks[:count], other.chunks[:count], strict=True):
        for name in ("rgb", "depth"):
            difference = np.abs(mine.frames[name] - theirs.frames[name]).max()
            assert difference <= 1e-5, (name, difference)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    mix=st.lists(requests(), min_size=1, max_size=8),
    joins=st.lists(st.integers(0, 10), min_size=8, max_size=8),
    stays=st.lists(st.none() | st.integers(0, 12), min_size=8, max_size=8),
    max_batch=st.integers(2, 16),
)
def test_alone_or_among_others_the_frames_are_the_same(
    model: WorldModel, mix: list[RolloutRequest], joins: list[int], stays: list[int | None], max_batch: int
) -> None:
    solos = [finish(Engine(), model, one)[0] for one in mix]
    engine, running = Engine(Limits(max_batch=max_batch)), {}
    for tick in range(1 + max(joins) + 12):
        for index, one in enumerate(mix):
            if joins[index] == tick:
                ((running[index],)) = submit(engine, model, one)
            stay = stays[index]
            if stay is not None and joins[index] + stay == tick:
                engine.cancel(running[index][0])
        engine.tick()
    while not engine.idle:
        engine.tick()
    for index, solo in enumerate(solos):
        listener = running[index][1]
        assert_same(solo, listener)
        if stays[index] is None:
            assert listener.end.status == "succeeded" and len(listener.chunks) == len(solo.chunks)
