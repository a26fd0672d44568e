"""Tables and plots of results that were made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from worldcache.bench.calibrate import candidates, choose_presets
from worldcache.bench.plot import plot_fronts
from worldcache.bench.report import as_json, as_markdown, best_within
from worldcache.bench.store import Key, Store
from worldcache.errors import InvalidInput


def record(
    entry: str,
    family: str,
    full: float,
    psnr: float,
    *,
    part: str = "chunks",
    policy: str = "interval",
    true_psnr: float = 30.0,
    accuracy: float = 0.8,
    **parameters: Any,
) -> dict[str, Any]:
    """A result in the form that the benchmark writes."""
    close = {"psnr": psnr, "psnr_pooled": psnr, "ssim": 0.9}
    true = {"rgb": {"psnr": true_psnr, "ssim": 0.8}, "depth": {"psnr": 30.0, "ssim": 0.8, "error": 0.5}}
    return {
        **Key("toy", "base", part, entry)._asdict(),
        "terms": {"run": {"chunks": 3, "steps": 50, "rollouts": 2, "rollout_frames": 8}},
        "family": family,
        "policy": "none" if family == "none" else policy,
        "parameters": parameters,
        "steps_full": full,
        "steps_total": 50,
        "seconds": full,
        "to_uncached": {"rgb": close, "depth": close},
        "to_truth": {"all": true, "moving_samples": 0},
        "control": {"generated": {"accuracy": accuracy, "last_quarter": accuracy}},
    }


RESULTS = [
    record("none", "none", 50, 100.0),
    record("interval, 13", "interval", 13, 40.0),
    record("forecast, 12", "forecast", 12, 45.0, full_steps=12),
    record("forecast, 13", "forecast", 13, 46.0, full_steps=13),
]


def test_a_budget_is_exact_for_whoever_is_told_it_and_lenient_for_others() -> None:
    def score(r: dict[str, Any]) -> float:
        return float(r["to_uncached"]["rgb"]["psnr"])

    assert best_within(RESULTS[1:2], 12, score) is RESULTS[1]
    assert best_within(RESULTS[2:], 12, score) is RESULTS[2]
    assert best_within(RESULTS[1:2], 10, score) is None


def test_the_report_shows_the_front_every_entry_and_what_did_not_run() -> None:
    failed = {**Key("toy", "base", "chunks", "hook")._asdict(), "failure": "no transformer"}
    text = as_markdown([*RESULTS, failed], "a machine")
    assert "| `forecast` | **45.0** |" in text
    assert "| `interval` | 40.0 |" in text
    assert "| `interval, 13` | - | 13.0 of 50 | 0.260 | 40.0 | 40.0 |" in text
    assert "- `hook` (chunks): no transformer" in text
    assert as_json(RESULTS, "a machine")["results"] == RESULTS


def test_the_front_is_drawn(tmp_path: Path) -> None:
    assert not plot_fronts([], tmp_path / "nothing.png")
    assert plot_fronts(RESULTS, tmp_path / "front.png")
    assert Image.open(tmp_path / "front.png").width > 500


def test_presets_are_the_cheapest_entries_that_hold_the_bars() -> None:
    results = [
        *RESULTS,
        record("none", "none", 50, 100.0, part="rollouts"),
        record("slow", "x", 20, 50.0, interval=2),
        record("slow", "x", 20, 50.0, part="rollouts"),
        record("quick", "x", 7, 40.0, true_psnr=29.5, interval=7),  # keeps 98.3 %
        record("quick", "x", 7, 40.0, part="rollouts"),
        record("wild", "x", 3, 30.0, interval=20),
        record("wild", "x", 3, 30.0, part="rollouts", accuracy=0.5),  # keeps 62.5 % of the control
    ]
    found = candidates(results, "toy")
    assert [c.label for c in found] == ["wild", "quick", "slow"]
    presets, auto = choose_presets(found)
    assert presets["quality"]["parameters"] == {"interval": 2}
    assert presets["balanced"]["parameters"] == {"interval": 7}
    assert presets["fast"]["parameters"] == {"interval": 7}
    assert presets["fast"]["measured"]["steps_full"] == 7
    assert auto == "balanced"
    assert choose_presets([]) == (
        {n: {"policy": "none", "parameters": {}, "measured": {}} for n in presets},
        auto,
    )


def test_a_measured_cost_counts_more_than_counted_steps() -> None:
    results = [
        *RESULTS[:1],
        record("none", "none", 50, 100.0, part="rollouts"),
        *(
            record(n, "x", full, 50.0, part=p)
            for n, full in (("a", 10), ("b", 12))
            for p in ("chunks", "rollouts")
        ),
        {**Key("toy", "base", "timing", "b")._asdict(), "speed_up": 9.0},
    ]
    assert [c.label for c in candidates(results, "toy")] == ["b", "a"]


def test_presets_need_the_uncached_run() -> None:
    with pytest.raises(InvalidInput, match="run the benchmark"):
        candidates(RESULTS[1:], "toy")


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    key = Key("toy", "base", "chunks", "none")
    Store(path).add(key, {"steps": (1, 2)}, {"value": 3})
    with path.open("a") as file:
        file.write('{"model": "to')
    store = Store(path)
    found = store.find(key, {"steps": (1, 2)})
    assert found is not None
    assert found["value"] == 3
    assert store.find(key, {"steps": (1, 3)}) is None
