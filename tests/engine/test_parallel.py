"""Threads of the host: all in the backbone, one elsewhere, and afterwards as many as before."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.engine.listening import finish, request
from tests.toy import ToyWorldModel
from worldcache.decoded import Decoded
from worldcache.engine.engine import Engine
from worldcache.engine.parallel import num_threads, quicker_num_threads
from worldcache.models.base import Row

THREADS = 3


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    with num_threads(THREADS):
        yield


def test_the_number_is_put_back_after_an_error() -> None:
    with pytest.raises(RuntimeError, match="inside"), num_threads(2) as before:
        assert (before, torch.get_num_threads()) == (THREADS, 2)
        raise RuntimeError("inside")
    assert torch.get_num_threads() == THREADS


def test_the_backbone_alone_uses_them_all() -> None:
    seen: dict[str, set[int]] = {"evaluate": set(), "advance": set()}

    class Watched(ToyWorldModel):
        def evaluate(self, rows: Sequence[Row]) -> Tensor:
            seen["evaluate"].add(torch.get_num_threads())
            return super().evaluate(rows)

        def advance(self, context: Any, latent: Tensor, decoded: Decoded, actions: Any) -> Any:
            seen["advance"].add(torch.get_num_threads())
            return super().advance(context, latent, decoded, actions)

    (listener,) = finish(Engine(), Watched(), request("interval", interval=3))
    assert listener.end.status == "succeeded"
    assert seen == {"evaluate": {THREADS}, "advance": {1}}
    assert torch.get_num_threads() == THREADS


@pytest.mark.parametrize(("one", "several", "quicker"), [(1.0, 0.5, 2), (1.0, 0.95, 1), (1.0, 2.0, 1)])
def test_the_quicker_number_of_threads_is_found(
    monkeypatch: pytest.MonkeyPatch, one: float, several: float, quicker: int
) -> None:
    now = [0.0]

    def clock() -> float:
        now[0] += {1: one, 2: several}[torch.get_num_threads()]
        return now[0]

    monkeypatch.setattr(time, "perf_counter", clock)
    before = torch.get_num_threads()
    assert quicker_num_threads(2) == quicker
    assert torch.get_num_threads() == before
    assert quicker_num_threads(1) == 1
