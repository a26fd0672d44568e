"""The examples run from beginning to end, with the smallest budgets there are."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

import worldcache
from tests.app.conftest import serving

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(models_by_name={"doom": worldcache.load_model("doom")}) as server:
        yield str(server.base_url)


def run(name: str, *arguments: str) -> str:
    """What an example prints."""
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments]
    done = subprocess.run(command, cwd=EXAMPLES.parent, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_plan_becomes_a_picture(url: str, tmp_path: Path) -> None:
    picture = tmp_path / "plan.png"
    budget = ("--steps", "1", "--candidates", "2", "--rounds", "1", "--elite", "1")
    run("plan_to_goal", "--url", url, "--output", str(picture), *budget)
    with Image.open(picture) as image:
        assert image.width > 400 and len(image.convert("RGB").getcolors(2**20) or ()) > 50


def test_an_agent_learns_something(url: str, tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    budget = ("--worlds", "2", "--steps", "2", "--batches", "2", "--evaluations", "1", "--full-steps", "2")
    printed = run("train_agent", "--url", url, "--output", str(results), *budget)
    found = json.loads(results.read_text())
    assert len(found["curve"]) == 2 and found["trained"]["episodes"] == 2
    assert printed.startswith("random") and "after 4 episodes" in printed


def test_the_ratio_of_speeds_is_printed(url: str) -> None:
    printed = run("vector_speed", "--url", url, "--worlds", "2", "--repeats", "1")
    assert "2 single worlds in turn" in printed and "ratio: " in printed


@pytest.mark.parametrize("name", ["plan_to_goal", "train_agent", "vector_speed"])
def test_every_example_explains_itself(name: str) -> None:
    assert "--url" in run(name, "--help")
