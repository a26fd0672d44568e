"""The library's one call."""

from __future__ import annotations

import pytest

import worldcache
from tests.toy import ToyWorldModel
from worldcache.core import ChunkFinished
from worldcache.errors import InvalidInput, UnknownName


def test_a_rollout_gives_a_frame_per_action() -> None:
    chunks: list[ChunkFinished] = []
    result = worldcache.rollout(
        ToyWorldModel(), actions=["ATTACK"] * 6, policy="interval", interval=4, on_chunk=chunks.append
    )
    assert result.frames["rgb"].shape == (6, 48, 64, 3)
    assert [len(chunk.frames["rgb"]) for chunk in chunks] == [4, 2]
    assert result.stats.policy == "interval"
    assert result.stats.steps_full == 2 * 5  # steps 0, 4, 8, 12, 16 of 20


def test_presets_by_name_and_by_default() -> None:
    model = ToyWorldModel()
    assert worldcache.rollout(model, actions=[0]).stats.policy == "worldcache"
    assert worldcache.rollout(model, actions=[0], policy="auto").stats.policy == "worldcache"
    assert worldcache.rollout(model, actions=[0], policy="fast").stats.policy == "interval"
    assert worldcache.rollout(model, actions=[0], policy="none").stats.skip_ratio == 0


def test_bad_arguments_are_named() -> None:
    model = ToyWorldModel()
    with pytest.raises(UnknownName, match="fastest"):
        worldcache.rollout(model, actions=[0], policy="fastest")
    with pytest.raises(InvalidInput, match="at least one action"):
        worldcache.rollout(model, actions=[])
    with pytest.raises(InvalidInput, match="from 1 to"):
        worldcache.rollout(model, actions=[0], num_inference_steps=0)
    with pytest.raises(InvalidInput, match="not of a preset"):
        worldcache.rollout(model, actions=[0], policy="fast", interval=3)
    with pytest.raises(UnknownName) as caught:
        worldcache.rollout(model, actions=[0], start="nowhere")
    assert caught.value.param == "observation.start"
