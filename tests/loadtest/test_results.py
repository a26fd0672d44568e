"""From answers and turns to what is reported, and what must hold of it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from app.loadtest.checks import broken, check, goodput, latency_bounds
from app.loadtest.measures import spread
from app.loadtest.open import Traffic, summarise, summarise_memory
from app.loadtest.plot import plot_points
from app.loadtest.report import as_markdown
from app.loadtest.results import (
    Answer,
    Cancellations,
    Findings,
    Levels,
    Load,
    Point,
    Turn,
    summarise_turns,
)
from app.loadtest.scrape import EngineUse

CALM = Levels(0, 0, 500.0)
TRAFFIC = Traffic(rate=2.0, seconds=100.0, share=0.7)


def answer(began: float, status: int = 200, **changes: Any) -> Answer:
    """An answer after a second, of a rollout that succeeded if it was accepted."""
    state = "succeeded" if status in (200, 202) else ""
    return Answer("none", began, began + 1, status, **{"state": state, "latency": 1.0, **changes})


def load(*answers: Answer) -> Load:
    return summarise(answers, TRAFFIC, 0.0, 0.001)


def point(policy: str, clients: int, rate: float, failed: int = 0) -> Point:
    times = spread([clients / rate] * 3)
    return Point(policy, clients, rate, 16 * rate, times, times, times, failed, 1.0, None)


def turn(policy: str, together: float, apart: float) -> Turn:
    use = EngineUse(10, 80, {8: 10}, 0.95 * together, together, 0.1)
    return Turn(policy, 8, together, apart, together / 1.05, use)


def findings(**changes: Any) -> Findings:
    """A server that keeps every promise."""
    slow = [turn("none", 8.0, 10.0), turn("none", 9.0, 10.0), turn("none", 80.0, 100.0)]
    fast = [turn("fast", 2.0, 2.5), turn("fast", 3.0, 2.5), turn("fast", 20.0, 25.0)]
    served = load(*(answer(t / 2) for t in range(200)))
    known = Findings(
        about={"machine": "a machine", "model": "toy", "frames": 16, "steps": 50, "dtype": "float32",
               "max_batch": 8},
        capacity=(16, 64),
        backbone={1: 0.01, 8: 0.06},
        points=[point("none", 1, 1.0), point("none", 8, 1.0), point("fast", 8, 4.0)],
        batching=[summarise_turns(slow, slow), summarise_turns(fast, slow)],
        sustainable=1.6,
        steady=served,
        overload=served,
        before=CALM,
        after=CALM,
        memory=summarise_memory([(float(t), 500.0) for t in range(100)], 100.0),
        cancellations=Cancellations(6, 6, 0, 0, 12.0, CALM, CALM),
    )  # fmt: skip
    return replace(known, **changes)


def test_every_answer_is_accounted_for() -> None:
    found = load(
        answer(30.0),
        answer(31.0, 202, later=True),
        answer(32.0, 202, later=True, state="404 when polled"),
        answer(33.0, 503, retry_after=True),
        answer(34.0, 429, retry_after=True),
        answer(35.0, 503),
        answer(36.0, 500),
        answer(37.0, 0, state="ReadError"),
    )
    assert (found.sent, found.accepted, found.succeeded, found.refused, found.wrong) == (8, 3, 2, 2, 2)
    assert found.lost == {"404 when polled": 1, "ReadError": 1}
    assert found.statuses == {0: 1, 200: 1, 202: 2, 429: 1, 500: 1, 503: 2}
    assert found.latency.count == 2


def test_the_first_quarter_does_not_count_as_completed() -> None:
    # ended at 1, 25, 26, 99.5 and 100.5 s of 100: three of them in the last 75 s
    found = load(*(answer(at) for at in (0.0, 24.0, 25.0, 98.5, 99.5)))
    assert found.completed_per_second == pytest.approx(3 / 75)


def test_memory_is_judged_in_the_second_half() -> None:
    samples = [(0.0, 100.0), (30.0, 300.0), (60.0, 500.0), (75.0, 501.0), (90.0, 502.0), (130.0, 900.0)]
    memory = summarise_memory(samples, 100.0)
    assert memory is not None
    assert memory.growth == pytest.approx(4.0)  # 1 MiB in 15 s
    assert (memory.range, memory.level, memory.minutes) == (2.0, 501.0, 0.5)
    assert summarise_memory([], 100.0) is None


def test_turns_are_compared_within_a_repeat() -> None:
    slow, fast = findings().batching
    assert slow.of_apart == pytest.approx(0.8)  # of 0.8, 0.9, 0.8
    assert fast.gain_apart == pytest.approx(4.0)
    assert fast.gain_together == pytest.approx(4.0)  # of 4, 3, 4
    assert fast.kept_gain == pytest.approx(1.0)
    assert fast.of_table == pytest.approx(1.05)
    assert fast.outside == pytest.approx(0.05)


def test_the_queue_promises_what_its_places_take() -> None:
    # 64 in line at 1.6 a second, then the slowest takes 16 s among 16 active ones at 1 a second
    mean, bound, found = latency_bounds(findings())
    assert mean == pytest.approx(80 / 1.6)
    assert bound == found == pytest.approx(64 / 1.6 + 16)
    slower = replace(findings().overload, completed_per_second=0.8)
    assert latency_bounds(findings(overload=slower))[2] == pytest.approx(2 * bound)
    assert goodput(findings(overload=slower)) == pytest.approx(0.5)


def test_a_server_that_keeps_its_promises_passes() -> None:
    assert all(c.holds for c in check(findings()))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"points": [point("none", 8, 1.0, failed=1)]}, "closed loops: every rollout succeeds"),
        ({"steady": load(answer(1.0, 500))}, "steady mix: 200, 202"),
        ({"overload": load(answer(1.0, 503))}, "overload: 200, 202"),
        ({"overload": load(answer(1.0, 202, state="failed"))}, "overload: no accepted rollout is lost"),
        ({"overload": load(answer(1.0, 0, state="ReadError"))}, "overload: no accepted rollout is lost"),
        ({"after": Levels(0, 1, None)}, "before the overload"),
        ({"cancellations": Cancellations(6, 6, 0, 0, 12.0, CALM, Levels(2, 0, 500.0))}, "the cancellations"),
        ({"cancellations": Cancellations(6, 6, 0, 1, 12.0, CALM, CALM)}, "no request fails"),
        ({"cancellations": Cancellations(6, 6, 0, 0, 5.0, CALM, CALM)}, "counted as cancelled"),
    ],
)
def test_what_must_hold_anywhere_is_held(changes: dict[str, Any], words: str) -> None:
    (wrong,) = broken(check(findings(**changes)))
    assert words in wrong.claim


def test_slowness_is_told_and_is_no_fault() -> None:
    slow = [turn("none", 12.0, 10.0)]
    kept = [turn("fast", 6.0, 2.5)]
    checks = check(
        findings(
            batching=[summarise_turns(slow, slow), summarise_turns(kept, slow)],
            memory=summarise_memory([(float(t), 500.0 + t) for t in range(100)], 100.0),
            cancellations=Cancellations(6, 6, 0, 0, 12.0, CALM, Levels(0, 0, 600.0)),
        )
    )
    assert not broken(checks)
    failing = [c.claim for c in checks if c.holds is False]
    for words in ("one after another", "speed-up at once", "memory grows", "memory as before"):
        assert any(words in claim for claim in failing), words


def test_the_report_tells_all_parts() -> None:
    found = findings()
    text = as_markdown(found, check(found), "load.png")
    for words in (
        "a machine.",
        "![Throughput and latency against the number of clients](load.png)",
        "| `fast` | 8 | 3 | 4 | 64.0 |",
        "| 8 | 60.0 | 7.50 | 1.33x |",
        "| `fast` | 3.00 | 2.50 | 0.800 | 1.050 | 1.053 | 4.00x | 4.00x | 1.000 | 8.0 | 5.0% |",
        "200 requests, 0 of them asynchronous: 200 x 200. 200 accepted",
        "12 rollouts, waiting or running: 6 cancelled by DELETE, 6 by closing the connection",
    ):
        assert words in text, words
    assert "**no**" not in text


def test_what_was_not_measured_is_not_made_up() -> None:
    unknown = Levels(0, 0, None)
    found = findings(
        backbone={},
        memory=None,
        overload=load(answer(1.0, 503, retry_after=True)),
        cancellations=Cancellations(1, 0, 0, 0, 1.0, unknown, unknown),
        batching=[
            summarise_turns([replace(turn("none", 1.0, 2.0), backbone=None)], [turn("none", 1.0, 2.0)])
        ],
    )
    assert math.isnan(found.overload.latency.p99)
    text = as_markdown(found, check(found))
    assert "## Backbone" not in text and "Memory after" not in text
    assert "| `none`, 8 at once: wall time at most 1.1 of the table's backbone time | not measured |" in text
    assert "| after | 0 | 0 | - |" in text


def test_the_plot_is_drawn(tmp_path: Path) -> None:
    path = tmp_path / "new" / "load.png"
    plot_points(findings().points, path)
    assert Image.open(path).width > 500
