"""``worldcache drive``, from the command line to the report, and what must hold of it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.cli import main
from app.drive.checks import check
from app.drive.player import Track
from app.drive.results import Background, Findings, summarise_track
from app.loadtest.checks import broken
from app.loadtest.measures import spread
from app.loadtest.open import summarise_memory
from tests.app.conftest import serving
from tests.toy import ToyWorldModel
from worldcache.models.base import Row

SECTIONS = ("Claims", "Action to frame", "Frame rate", "Memory", "Together")


def run(url: str, folder: Path, *options: str) -> int:
    output = ("--output", str(folder / "sessions.md"))
    return main(
        ["drive", "--model", "toy", "--url", url, "--seconds", "0.8", "--steps", "4", *output, *options]
    )


def track(steps: int, **changes: Any) -> Track:
    """An action a second, whose four frames come half a second later."""
    seen = Track(
        sent={seq: float(seq) for seq in range(steps)},
        shown={seq: seq + 0.5 for seq in range(steps)},
        told=dict.fromkeys(range(steps), 0.4),
        computed=dict.fromkeys(range(steps), 0.48),
        frames=[seq + 0.5 for seq in range(steps) for _ in range(4)],
    )
    return replace(seen, **changes)


def findings(**changes: Any) -> Findings:
    """A server that keeps every promise."""
    one = summarise_track(track(10), "lockstep", 10.0, 4)
    known = Findings(
        about={"preset": "balanced"},
        compute=spread([0.48] * 9),
        lockstep=one,
        free=one,
        rates={"balanced": one, "none": one},
        fps=4.0,
        memory=summarise_memory([(float(at), 500.0) for at in range(100)], 100.0),
        first_quarter=500.0,
        last_quarter=500.0,
        together=(one, one),
        background=Background(3, 0),
    )
    return replace(known, **changes)


def test_sessions_are_driven_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(ToyWorldModel(delay=0.005)) as client:
        presets = ("--presets", "balanced,worldcache,none")
        assert run(str(client.base_url), tmp_path, "--pid", str(os.getpid()), *presets) == 0
    assert "wrote" in capsys.readouterr().out
    text = (tmp_path / "sessions.md").read_text()
    for section in SECTIONS:
        assert f"\n## {section}\n" in text
    found = json.loads((tmp_path / "sessions.json").read_text())
    assert found["compute"]["count"] == 15
    for drive in (found["lockstep"], found["free"], *found["rates"].values(), *found["together"]):
        assert drive["frames"] == 4 * drive["steps"] > 0
        assert drive["client"]["count"] == drive["server"]["count"] == drive["actions"]
        assert drive["client"]["p50"] >= drive["server"]["p50"] > 0
    assert found["lockstep"]["steps"] == found["lockstep"]["actions"]
    assert set(found["rates"]) == {"balanced", "worldcache", "none"}
    assert found["background"]["succeeded"] > 0 == found["background"]["failed"]
    assert found["memory"]["samples"] and found["first_quarter"] > 0


def test_a_server_whose_steps_fail_does_not_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[int] = []

    def fail_later(rows: Sequence[Row]) -> None:
        calls.append(len(rows))
        if len(calls) > 60:
            raise RuntimeError("worn out")

    with serving(ToyWorldModel(before_evaluate=fail_later)) as client:
        assert run(str(client.base_url), tmp_path, "--preset", "none", "--presets", "none") == 2
    assert "a step over HTTP failed: 500" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--preset", "nothing"), "nothing: 422, "),
        (("--presets", "none,nothing"), "nothing: 422, "),
        (("--model", "other"), "does not serve 'other'"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(
    options: tuple[str, ...], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving() as client:
        assert run(str(client.base_url), tmp_path, *options) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "sessions.md").exists()


def test_figures_of_a_track() -> None:
    drive = summarise_track(track(10), "lockstep", 10.0, 4)
    assert (drive.steps, drive.frames, drive.actions, drive.unseen) == (10, 40, 10, 0)
    assert (drive.client.p95, drive.server.p95) == (0.5, 0.4)
    assert drive.frames_per_second == 4.0  # nine steps of four frames in nine seconds
    assert drive.whole
    assert not summarise_track(Track(), "free", 1.0, 4).whole


def test_all_holds_of_a_good_server() -> None:
    assert all(c.holds for c in check(findings()))


@pytest.mark.parametrize(
    "changes",
    [
        {"gaps": 1},
        {"dropped": 3},
        {"errors": ["rollout_failed: it failed"]},
        {"shown": {0: 0.5}},
    ],
)
def test_a_frame_or_an_action_that_is_missing_is_no_pass(changes: dict[str, Any]) -> None:
    lame = summarise_track(track(10, **changes), "free", 10.0, 4)
    for found in (findings(free=lame), findings(together=(findings().lockstep, lame))):
        assert len(broken(check(found))) == 1
    assert len(broken(check(findings(background=Background(3, 1))))) == 1
    assert len(broken(check(findings(background=Background(0, 0))))) == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {
                "lockstep": summarise_track(
                    track(10, computed=dict.fromkeys(range(10), 0.4)), "lockstep", 10.0, 4
                )
            },
            "lock-step: action to frame",
        ),
        ({"fps": 5.0}, "frames come as fast"),
        ({"memory": summarise_memory([(float(at), 500.0 + at) for at in range(100)], 100.0)}, "memory grows"),
    ],
)
def test_slow_servers_are_told_but_pass(changes: dict[str, Any], words: str) -> None:
    checks = check(findings(**changes))
    assert [words in c.claim for c in checks if c.holds is False] == [True]
    assert not broken(checks)
