"""``worldcache loadtest --short``, from the command line to the report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import worldcache
from app.cli import main
from tests.app.conftest import serving
from tests.toy import ToyWorldModel
from worldcache.models.base import Row

ROOT = Path(__file__).parents[2]
PRETRAINED = Path(worldcache.__file__).parent / "models" / "doom" / "pretrained"
SECTIONS = ("Claims", "Closed loops", "4 at once", "Steady mix", "Overload", "Cancellations")
PLACES = ("--max-active", "4", "--max-queue", "4")


def run(url: str, folder: Path, *options: str) -> int:
    """Against a server of this process."""
    output = ("--output", str(folder / "load.md"))
    return main(["loadtest", "--short", "--model", "toy", "--url", url, *PLACES, *output, *options])


def test_a_server_under_load_keeps_its_promises(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(ToyWorldModel(delay=0.02), max_active=4, max_queue=4) as client:
        policies = ("--policies", "none,forecast:full_steps=3")
        assert run(str(client.base_url), tmp_path, "--pid", str(os.getpid()), *policies) == 0
    assert "wrote" in capsys.readouterr().out
    text = (tmp_path / "load.md").read_text()
    for section in SECTIONS:
        assert f"\n## {section}\n" in text
    assert (tmp_path / "load.png").exists()
    found = json.loads((tmp_path / "load.json").read_text())
    assert {(p["policy"], p["clients"]) for p in found["points"]} == {
        (policy, clients) for policy in ("none", "forecast full_steps=3") for clients in (1, 4)
    }
    overload = found["overload"]
    assert set(overload["statuses"]) <= {"200", "202", "429", "503"}
    assert overload["refused"] > 0  # the burst fills every place, and more comes
    assert overload["succeeded"] == overload["accepted"] == overload["sent"] - overload["refused"]
    assert 0 < overload["statuses"]["202"] <= overload["later"]
    assert found["memory"]["level"] > 0
    cancelled = found["cancellations"]
    assert sum(cancelled[way] for way in ("deleted", "disconnected", "escaped", "failed")) == 12
    assert cancelled["deleted"] > 0 and cancelled["disconnected"] > 0
    turns = [turn for turn in found["turns"] if turn["policy"] == "none"]
    assert [turn["use"]["rows"] for turn in turns] == [4 * 6]  # four rollouts of one chunk of six steps


def test_a_server_whose_rollouts_fail_does_not_pass(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail_for_attacks(rows: Sequence[Row]) -> None:
        if any(row.condition[0] == 3 for row in rows):
            raise RuntimeError("no attacks")

    with serving(
        ToyWorldModel(delay=0.02, before_evaluate=fail_for_attacks), max_active=4, max_queue=4
    ) as client:
        assert run(str(client.base_url), tmp_path, "--policies", "none") == 2
    message = capsys.readouterr().err
    assert "closed loops: every rollout succeeds" in message
    # one that fails is answered by 500, or is lost if it was accepted before
    assert "overload: 200, 202" in message or "overload: no accepted rollout is lost" in message
    assert "**no**" in (tmp_path / "load.md").read_text()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--policies", "nothing"), "nothing: 422, "),
        (("--model", "other"), "does not serve 'other'"),
        (("--max-batch", "1"), "setting max_batch"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(
    options: tuple[str, ...], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving() as client:
        assert run(str(client.base_url), tmp_path, *options) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "load.md").exists()


def test_a_server_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("http://127.0.0.1:9", tmp_path) == 2
    assert "http://127.0.0.1:9 does not answer" in capsys.readouterr().err


@pytest.mark.server
@pytest.mark.slow
@pytest.mark.skipif(not PRETRAINED.exists(), reason="the pretrained model is not in this checkout")
def test_the_command_starts_a_server_of_its_own(tmp_path: Path) -> None:
    options = ["--policies", "none,forecast:full_steps=2", "--steps", "4", "--together", "2"]
    options += ["--concurrency", "1,2", "--overload", "1", "--cancellations", "6"]
    done = subprocess.run(
        [sys.executable, "-m", "app.cli", "loadtest", "--short", *options, "--output", tmp_path / "load.md"],
        cwd=ROOT,
        env={**os.environ, "WORLDCACHE_MAX_PER_CLIENT": "5"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "load.json").read_text())
    assert sorted(found["backbone"]) == ["1", "2", "3", "4"]
    assert found["capacity"] == [4, 4]
    assert "429" not in found["overload"]["statuses"]  # it is the queue that is full, not the client's share
    assert found["memory"]["samples"]
    assert "## Backbone" in (tmp_path / "load.md").read_text()
