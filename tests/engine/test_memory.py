"""What a rollout held is free as soon as nobody uses it, without the garbage collector's help."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from tests.engine.listening import finish, request
from tests.toy import ToyWorldModel
from worldcache.engine.denoise import ChunkDenoiser
from worldcache.engine.engine import Engine


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("policy", ["none", "interval", "worldcache", "forecast", "easycache"])
def test_denoisers_are_freed_with_their_chunk(
    no_collector: None, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    made: list[weakref.ref[ChunkDenoiser]] = []
    begin = ChunkDenoiser.__post_init__

    def noted(self: ChunkDenoiser) -> None:
        made.append(weakref.ref(self))
        begin(self)

    monkeypatch.setattr(ChunkDenoiser, "__post_init__", noted)
    listeners = finish(Engine(), ToyWorldModel(), request(policy))
    assert listeners[0].end.status == "succeeded"
    assert made and not any(one() for one in made)
