"""The command line, called in process; the toy model stands in for a real one where nothing is said."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import worldcache
from app import logs, serving
from app.cli import main, parse_actions, parse_parameters
from app.files import contact_sheet
from tests.toy import ToyWorldModel
from worldcache.errors import InvalidInput, ModelLoadError

COMMANDS = ("serve", "rollout", "models", "policies", "train")
PRETRAINED = Path(worldcache.__file__).parent / "models" / "doom" / "pretrained"
ROOT = Path(__file__).parents[1]

ROLLOUT = ("rollout", "--actions", "MOVE_LEFT*5,ATTACK", "--steps", "6")
"""Six frames of the toy model: a chunk of four and one of two."""


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> ToyWorldModel:
    """The model that every ``load_model`` of the test returns."""
    model = ToyWorldModel()
    monkeypatch.setattr(worldcache, "load_model", lambda name, **options: model, raising=False)
    return model


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Calls the command line, which must end with exit code 2 and one line; returns that line."""

    def call(*argv: str) -> str:
        assert main(argv) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1 and captured.err.endswith("\n")
        return captured.err

    return call


def test_actions_are_names_or_indices_with_counts() -> None:
    assert parse_actions("MOVE_LEFT*2, ATTACK ,0*3,3") == ["MOVE_LEFT", "MOVE_LEFT", "ATTACK", 0, 0, 0, 3]


@pytest.mark.parametrize("text", ["", "A,,B", "A*0", "A*-1", "A*", "A*x", "*3"])
def test_broken_actions_are_refused_with_their_place(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_actions(text)
    assert caught.value.param is not None and caught.value.param.startswith("actions.")


def test_parameters_are_json_or_text() -> None:
    pairs = ["max_skip=6", "rate=0.5", "mode=linear", "flag=true", "text=a=b"]
    assert parse_parameters(pairs) == {
        "max_skip": 6,
        "rate": 0.5,
        "mode": "linear",
        "flag": True,
        "text": "a=b",
    }


@pytest.mark.parametrize("pair", ["max_skip", "=6", ""])
def test_a_parameter_without_key_or_value_is_refused(pair: str) -> None:
    with pytest.raises(InvalidInput, match="key=value"):
        parse_parameters([pair])


@pytest.mark.parametrize("argv", [(), *((command,) for command in COMMANDS)])
def test_help_is_there_for_every_command(argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*argv, "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert "usage: worldcache" in out
    if not argv:
        assert all(command in out for command in COMMANDS)


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; sys.argv = ['worldcache', '--version']\n"
        "from app.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules and 'fastapi' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == f"worldcache {worldcache.__version__}"


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["conquer"],
        ["rollout"],
        [*ROLLOUT, "--steps", "0"],
        [*ROLLOUT, "--policy", "none", "--preset", "fast"],
        ["train", "--frames", "-5"],
    ],
)
def test_bad_usage_is_exit_code_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    assert "usage: worldcache" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--policy", "magic"], "unknown policy 'magic'"),
        (["--preset", "magic"], "unknown preset 'magic'"),
        (["--start", "nowhere"], "unknown start 'nowhere'"),
        (["--actions", "FLY"], "unknown action 'FLY'"),
        (["--actions", "9"], "action index 9"),
        (["--policy", "worldcache", "--param", "max_skip=-1"], "'max_skip'"),
        (["--policy", "worldcache", "--param", "colour=red"], "no parameter 'colour'"),
        (["--param", "max_skip=6"], "--param needs --policy"),
        (["--output", "out.gif"], "must end in one of"),
        (["--output", "nowhere/out.png"], "create it first"),
    ],
)
def test_a_rollout_that_cannot_be_is_refused_in_one_line(
    extra: list[str], words: str, toy: ToyWorldModel, refused: Callable[..., str]
) -> None:
    message = refused(*ROLLOUT, *extra)
    assert message.startswith("worldcache rollout: ")
    assert words in message
    assert not toy.batches  # the model computed nothing


def test_an_unknown_model_is_refused(refused: Callable[..., str]) -> None:
    assert "unknown model 'atlantis'" in refused(*ROLLOUT, "--model", "atlantis")


def test_a_missing_package_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    def load(name: str, **options: Any) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(worldcache, "load_model", load, raising=False)
    assert "pip install 'worldcache[server]'" in refused(*ROLLOUT)


def test_a_rollout_shows_its_decisions(toy: ToyWorldModel, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [*ROLLOUT, "--policy", "interval", "--param", "interval=2"]
    assert main(argv) == 0
    first, second, total = capsys.readouterr().out.splitlines()
    assert first.startswith("chunk   0  F.F.F.")
    assert second.startswith("chunk   1  F.F.F.")
    assert "50% cached" in first
    assert "6 frames in" in total and "policy interval: 6 of 12 steps computed, skip ratio 0.500" in total


def test_a_preset_is_a_policy_with_its_parameters(
    toy: ToyWorldModel, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*ROLLOUT, "--preset", "fast"]) == 0
    assert capsys.readouterr().out.startswith("chunk   0  F....F")


def test_the_frames_are_written_as_arrays(toy: ToyWorldModel, tmp_path: Path) -> None:
    path = tmp_path / "out.npz"
    assert main([*ROLLOUT, "--output", str(path)]) == 0
    with np.load(path) as arrays:
        assert arrays["rgb"].shape == (6, 48, 64, 3) and arrays["rgb"].dtype == np.uint8
        assert arrays["depth"].shape == (6, 48, 64) and arrays["depth"].dtype == np.float32


def test_the_frames_are_written_as_a_contact_sheet(toy: ToyWorldModel, tmp_path: Path) -> None:
    path = tmp_path / "out.png"
    assert main([*ROLLOUT, "--output", str(path)]) == 0
    with Image.open(path) as picture:
        assert picture.size == (6 * 128, 2 * 96)  # twice as large


@pytest.mark.parametrize("ending", ["mp4", "webp"])
def test_the_frames_are_written_as_a_video(ending: str, toy: ToyWorldModel, tmp_path: Path) -> None:
    path = tmp_path / f"out.{ending}"
    assert main([*ROLLOUT, "--output", str(path)]) == 0
    mark = {"mp4": path.read_bytes()[4:8] == b"ftyp", "webp": path.read_bytes()[8:12] == b"WEBP"}
    assert mark[ending]


def test_a_contact_sheet_wraps_and_puts_depth_below_rgb() -> None:
    info = ToyWorldModel().info
    rgb = np.arange(10, dtype=np.uint8)[:, None, None, None].repeat(48, 1).repeat(64, 2).repeat(3, 3)
    depth = np.full((10, 48, 64), info.modality("depth").high / 2, np.float32)
    sheet = contact_sheet({"rgb": rgb, "depth": depth}, info)
    # Two lines of eight frames, rgb over depth in each, every pixel twice as wide and high.
    assert sheet.shape == (4 * 96, 8 * 128, 3)
    tops = sheet[::96, ::128, 0]
    assert tops[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert tops[1].tolist() == [128] * 8  # half of 255, rounded
    assert tops[2].tolist() == [8, 9, 0, 0, 0, 0, 0, 0]
    assert tops[3].tolist() == [128, 128, 0, 0, 0, 0, 0, 0]


def test_models_are_listed(toy: ToyWorldModel, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    out = capsys.readouterr().out
    for word in ("doom", "64x48", "MOVE_LEFT", "centre", "balanced (default)"):
        assert word in out


def test_a_model_without_weights_is_listed_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(name: str, **options: Any) -> None:
        raise ModelLoadError("world.json is missing")

    monkeypatch.setattr(worldcache, "load_model", load, raising=False)
    assert main(["models"]) == 0
    assert "doom" in capsys.readouterr().out


def test_policies_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policies"]) == 0
    out = capsys.readouterr().out
    for word in ("none", "interval", "taylor", "worldcache", "max_skip="):
        assert word in out


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What was to be served, instead of serving it; no setting comes from the environment."""
    calls: list[dict[str, Any]] = []
    for variable in [name for name in os.environ if name.startswith("WORLDCACHE_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setattr(logs, "configure_logging", lambda level, log_format: None)
    monkeypatch.setattr(serving, "serve", lambda app, **options: calls.append({"app": app, **options}))
    return calls


def test_serving_overrides_the_settings(
    served: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLDCACHE_PORT", "8001")
    monkeypatch.setenv("WORLDCACHE_DRAIN_SECONDS", "2.5")
    assert main(["serve", "--host", "127.0.0.2", "--port", "8002"]) == 0
    (call,) = served
    assert (call["host"], call["port"], call["timeout_graceful_shutdown"]) == ("127.0.0.2", 8002, 3)
    assert main(["serve"]) == 0
    assert (served[1]["host"], served[1]["port"]) == ("127.0.0.1", 8001)


def test_serving_everyone_without_a_key_is_refused(
    served: list[dict[str, Any]], refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "WORLDCACHE_API_KEYS" in refused("serve", "--host", "0.0.0.0")
    assert not served
    assert main(["serve", "--host", "0.0.0.0", "--insecure"]) == 0
    monkeypatch.setenv("WORLDCACHE_API_KEYS", "secret")
    assert main(["serve", "--host", "0.0.0.0"]) == 0
    assert len(served) == 2


def test_a_setting_that_cannot_be_is_refused_by_name(
    served: list[dict[str, Any]], refused: Callable[..., str]
) -> None:
    assert refused("serve", "--port", "99999").startswith("worldcache serve: setting port: ")
    assert not served


def test_training_an_unknown_scenario_is_refused(tmp_path: Path, refused: Callable[..., str]) -> None:
    pytest.importorskip("vizdoom", reason="the extra train is not installed")
    message = refused("train", "--scenario", "chess", "--folder", str(tmp_path))
    assert message.startswith("worldcache train: unknown scenario 'chess'")


@pytest.mark.slow
@pytest.mark.skipif(not PRETRAINED.exists(), reason="the pretrained model is not in this checkout")
def test_the_model_that_ships_rolls_out(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    argv = ["rollout", "--actions", "MOVE_LEFT*4,ATTACK*4", "--steps", "12", "--policy", "worldcache"]
    done = subprocess.run(
        [sys.executable, "-m", "app.cli", *argv, "--output", str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    first, second, total, _ = done.stdout.splitlines()
    assert first.startswith("chunk   0  F") and second.startswith("chunk   1  F")
    assert "8 frames in" in total and "of 24 steps computed" in total
    assert path.read_bytes()[4:8] == b"ftyp"
