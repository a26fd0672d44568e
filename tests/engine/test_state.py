"""Going on from a state is the same as never having stopped, on a real network."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.engine.listening import CENTRE, finish, request
from tests.tiny import load_tiny_model
from tests.toy import ToyWorldModel
from worldcache.bench.wrapper import BenchWorldModel
from worldcache.core import RolloutState
from worldcache.engine.engine import Engine
from worldcache.engine.rollout import RolloutRequest
from worldcache.errors import InvalidInput
from worldcache.models.base import WorldModel
from worldcache.models.doom.world import DoomWorldModel
from worldcache.policies.registry import make_policy


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> DoomWorldModel:
    return load_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def model(tiny: DoomWorldModel) -> WorldModel:
    """Its pictures are not rounded, which would hide a difference."""
    return BenchWorldModel(tiny)


def going_on(one: RolloutRequest, state: RolloutState | None, frames: int) -> RolloutRequest:
    """The rest of a request, from the state after ``frames`` of its frames."""
    return replace(one, observation=None, state=state, actions=one.actions[frames:])


@pytest.mark.parametrize(
    ("policy", "more"),
    [
        ("none", {}),
        ("forecast", {"full_steps": 5}),
        ("worldcache", {"warmup_steps": 3}),
        ("none", {"guidance_scale": 2.0}),
    ],
)
def test_a_long_rollout_equals_two_from_the_state_between(
    model: WorldModel, policy: str, more: dict[str, Any]
) -> None:
    actions = (1, 1, 2, 3, 0, 0, 1, 2, 3, 3, 3, 3, 2, 2, 1, 0)
    whole = replace(request(policy, seed=7, steps=10, **more), actions=actions)
    (long,) = finish(Engine(), model, whole)
    (first,) = finish(Engine(), model, replace(whole, actions=actions[:8]))
    state = first.chunks[-1].state
    assert state is not None and state.frames == 8
    (second,) = finish(Engine(), model, going_on(whole, state, 8))
    for name in ("rgb", "depth"):
        parts = [chunk.frames[name] for chunk in (*first.chunks, *second.chunks)]
        assert np.array_equal(np.concatenate(parts), np.concatenate([c.frames[name] for c in long.chunks]))
    assert first.decisions + second.decisions == long.decisions
    assert second.chunks[-1].state is not None and second.chunks[-1].state.frames == 16


def test_a_state_can_be_used_again_and_depends_on_what_led_there(model: WorldModel) -> None:
    one = request(frames=8, seed=7, steps=6)
    (first,) = finish(Engine(), model, one)
    state = first.chunks[0].state
    assert state is not None
    rest = going_on(one, state, 4)
    other_rest = replace(rest, actions=(3,) * 4)
    same, other, again = (finish(Engine(), model, r)[0].rgb() for r in (rest, other_rest, rest))
    assert np.array_equal(same, first.rgb()[4:]) and np.array_equal(again, same)
    assert not np.array_equal(other, same)
    later = replace(rest, state=replace(state, frames=8))
    assert not np.array_equal(finish(Engine(), model, later)[0].rgb(), same)


def test_there_is_no_state_behind_dropped_frames() -> None:
    (listener,) = finish(Engine(), ToyWorldModel(), request(frames=6))
    assert [chunk.state and chunk.state.frames for chunk in listener.chunks] == [4, None]


def test_a_rollout_starts_from_one_thing() -> None:
    policy = make_policy("none")
    with pytest.raises(ValueError, match="either"):
        RolloutRequest(None, (0,), policy, 0, 4)
    with pytest.raises(ValueError, match="either"):
        RolloutRequest(CENTRE, (0,), policy, 0, 4, state=RolloutState((), 4))


def test_a_context_comes_back_from_its_arrays(tiny: DoomWorldModel) -> None:
    (listener,) = finish(Engine(), tiny, request(frames=4))
    state = listener.chunks[-1].state
    assert state is not None
    arrays = tiny.export_context(state.context)
    back = tiny.import_context(arrays)
    assert np.array_equal(back.frames.numpy(), state.context.frames.numpy())
    assert back.actions == state.context.actions == (1, 1, 1, 1)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("frames", np.zeros((4, 4, 48, 64), np.float64)),
        ("frames", np.zeros((4, 3, 48, 64), np.float32)),
        ("frames", np.full((4, 4, 48, 64), np.nan, np.float32)),
        ("frames", np.full((4, 4, 48, 64), 1.5, np.float32)),
        ("frames", None),
        ("actions", np.array([0, 1, 2, 4], np.int64)),
        ("actions", np.array([0, -1, 2, 3], np.int64)),
        ("actions", np.zeros((5,), np.int64)),
        ("more", np.zeros((1,), np.float32)),
    ],
)
def test_arrays_that_are_no_context_are_refused_by_name(
    tiny: DoomWorldModel, name: str, array: np.ndarray | None
) -> None:
    (listener,) = finish(Engine(), tiny, request(frames=4))
    assert listener.chunks[0].state is not None
    arrays = tiny.export_context(listener.chunks[0].state.context)
    if array is None:
        del arrays[name]
    else:
        arrays[name] = array
    with pytest.raises(InvalidInput) as refused:
        tiny.import_context(arrays)
    assert refused.value.param == name


def test_a_model_may_keep_its_contexts_to_itself(model: WorldModel) -> None:
    with pytest.raises(InvalidInput, match="cannot write its contexts down"):
        model.export_context(())
