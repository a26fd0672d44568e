"""``worldcache bench`` and ``worldcache calibrate``, from the command line to the files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import worldcache
from app import bench
from app.cli import main
from tests.toy import ToyWorldModel
from worldcache.bench.run import Bench

OPTIONS = [
    "--only",
    "^none$|Voyager|interval, 7",
    "--settings",
    "base,guided3",
    "--chunks",
    "2",
    "--rollouts",
    "0",
]


@pytest.fixture
def folder(make_bench: Callable[..., Bench], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recording, and a toy in the place of every model."""
    make_bench(ToyWorldModel())
    monkeypatch.setattr(worldcache, "load_model", lambda name, **options: ToyWorldModel())
    monkeypatch.setattr(bench, "digest_of", lambda folder: "weights")
    return tmp_path


def run(folder: Path, *options: str) -> int:
    recordings = [f"--{name}={folder / 'heldout.npz'}" for name in ("heldout", "judge")]
    return main(["bench", "--folder", str(folder), *recordings, "--repeats", "1", *options])


def test_a_run_writes_table_data_and_plot(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "--quick", *OPTIONS, "--output", str(folder / "out.md")) == 0
    text = (folder / "out.md").read_text()
    assert "### `toy`, setting `base`" in text
    assert "### `toy`, setting `guided3`" in text
    assert "| `worldcache, Voyager's preset` |" in text
    facts = json.loads((folder / "out.json").read_text())
    assert {r["part"] for r in facts["results"]} == {"chunks", "timing"}
    assert (folder / "out.png").exists()
    assert "wrote" in capsys.readouterr().out
    (folder / "out.md").unlink()
    assert run(folder, "--report", "--output", str(folder / "out.md")) == 0
    assert (folder / "out.md").read_text() == text


def test_an_unknown_setting_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "--settings", "nowhere") == 2
    assert "unknown setting 'nowhere'" in capsys.readouterr().err


def test_each_model_wants_its_recording(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "--path", "a", "--path", "b") == 2
    assert "--heldout is given 1 times for 2 models" in capsys.readouterr().err


def test_calibration_without_results_has_no_presets(folder: Path) -> None:
    output = folder / "calibration.json"
    recording = str(folder / "heldout.npz")
    command = ["calibrate", "doom", "--heldout", recording, "--folder", str(folder), "--output", str(output)]
    assert main(command) == 0
    calibration = json.loads(output.read_text())
    assert len(calibration["policies"]["magcache"]["ratios"]) == 20
    assert "presets" not in calibration
    assert main([*command, "--results", str(folder / "nothing.jsonl")]) == 2
