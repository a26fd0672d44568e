"""Work is counted in elements; times are not judged."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.toy import ToyWorldModel
from worldcache.bench.entries import VOYAGER
from worldcache.bench.overhead import (
    SHAPES,
    CountWork,
    Shape,
    count_work,
    measure_overhead,
    transformer_flops,
)
from worldcache.bench.run import Bench
from worldcache.policies.registry import make_policy


def test_an_operation_counts_what_it_reads_or_writes() -> None:
    x = torch.ones(4, 8)
    with CountWork() as counted:
        x.add(1)  # 32
        x.sum()  # reads 32
        x.view(32)  # moves nothing
        x @ torch.ones(8, 2)  # and 16 for the ones; 2 * (4 * 2) * 8 = 128
        x.sort(dim=-1)  # 32 * log2(8) = 96
    assert counted.total == 32 + 32 + 16 + 128 + 96


def test_reuse_works_for_nothing() -> None:
    shape = Shape((6,), 4, 1, backbone_flops=1e6)
    report = count_work(make_policy("interval", interval=5), shape, num_steps=10)
    assert report["steps_full"] == 2
    assert report["cached"] == 0
    assert report["share"] < 1e-4


def test_the_backbones_are_as_large_as_published() -> None:
    assert transformer_flops(10, 3, 2, 5) == 2 * 10 * 3 + 4 * 2 * 9 * 5
    assert sum(SHAPES["Aether-5B"].tokens) * SHAPES["Aether-5B"].branches == 356_400
    assert sum(SHAPES["Voyager-13B"].tokens) * SHAPES["Voyager-13B"].branches == 81_120


def test_control_is_timed_on_the_model(
    make_bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worldcache.bench.overhead.SHAPES", {"small": Shape((6,), 4, 1, 1e6)})
    (record,) = measure_overhead(make_bench(ToyWorldModel()), [], only=VOYAGER.label)
    assert record["steps_full"] < 20
    assert record["time_share"] > 0
    assert record["time_share_alone"] > 0
    assert record["work"]["small"]["full"] > 0
