"""The comparison counts steps and differences; its times are not judged here."""

from __future__ import annotations

import math

import pytest

from tests.toy import ToyWorldModel
from worldcache.bench.compare import Contender, as_json, as_markdown, compare


def test_every_policy_is_compared_with_the_uncached_run() -> None:
    ticks: list[tuple[int, int]] = []
    none, half = compare(
        ToyWorldModel(gain=3.0),
        [Contender("every second", "interval", {"interval": 2})],
        actions=["NOOP"] * 8,
        num_inference_steps=10,
        repeats=2,
        progress=lambda done, total: ticks.append((done, total)),
    )
    assert ticks[-1] == (4, 4)
    assert (none.steps_total, none.steps_full) == (40, 40)
    assert none.time_ratio == 1.0
    assert math.isinf(none.psnr)
    assert half.full_share == pytest.approx(0.5)
    assert half.psnr < 40  # a held output moves the toy's latent elsewhere
    assert half.speed_up == pytest.approx(1 / half.time_ratio)


def test_results_are_written_as_table_and_data() -> None:
    results = compare(ToyWorldModel(), [], actions=["NOOP"], num_inference_steps=2, repeats=1)
    assert "| `none` | 2 of 2 |" in as_markdown(results)
    assert as_json(results)[0]["psnr"] is None
