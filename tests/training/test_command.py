"""The training command from end to end, on made-up episodes and a very small model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import worldcache
from worldcache.errors import ModelLoadError, UnknownName
from worldcache.training import command
from worldcache.training.collect import Episode, save_episodes
from worldcache.training.command import TrainOptions, train
from worldcache.training.train import TrainConfig


def write_episodes(folder: Path) -> None:
    """Episodes in which the picture follows the action, in place of ViZDoom's."""
    rng = np.random.default_rng(0)
    episodes = []
    for _ in range(6):
        actions = np.repeat(rng.integers(0, 4, 15), 4).astype(np.uint8)
        frames = np.zeros((60, 48, 64, 4), np.uint8)
        frames[...] = (actions * 15)[:, None, None, None]
        positions = np.cumsum(rng.normal(size=(60, 2)), 0).astype(np.float32)
        episodes.append(Episode(frames, actions, positions))
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("train", "heldout"):
        save_episodes(folder / f"{name}.npz", episodes)


def small(folder: Path, **changes: object) -> TrainOptions:
    settings: dict = {
        "folder": folder,
        "width": 32,
        "depth": 1,
        "heads": 2,
        "head_hidden": 8,
        "evaluation_chunks": 4,
        "evaluation_rollouts": 2,
        "evaluation_frames": 8,
        "train": TrainConfig(steps=2, batch_size=2, save_every=2),
    }
    return TrainOptions(**{**settings, **changes})


@pytest.mark.slow
def test_a_trained_model_can_be_loaded_and_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "CLASSIFIER_STEPS", 3)
    write_episodes(tmp_path / "one")
    stages: list[str] = []
    folder = train(small(tmp_path / "one"), lambda stage, *_: stages.append(stage))
    assert list(dict.fromkeys(stages)) == ["train", "first chunks", "rollouts", "inverse dynamics"]
    model = worldcache.load_model("doom", path=folder)
    result = worldcache.rollout(model, actions=["ATTACK"] * 2, num_inference_steps=2)
    assert result.frames["rgb"].shape == (2, 48, 64, 3)
    report = json.loads((folder / "evaluation.json").read_text())
    assert report["recipe"]["steps"] == 2
    assert 0 <= report["control"]["generated"]["accuracy"] <= 1
    card = (folder / "README.md").read_text()
    assert f"{report['control']['real']['accuracy']:.1%}" in card
    write_episodes(tmp_path / "two")
    again = train(small(tmp_path / "two", initial=folder, width=64))
    assert worldcache.load_model("doom", path=again).transformer.config.width == 32  # type: ignore[attr-defined]


def test_bad_options_are_named(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="basic"):
        train(small(tmp_path, scenario="nowhere"))
    write_episodes(tmp_path)
    with pytest.raises(ModelLoadError, match="transformer"):
        train(small(tmp_path, initial=tmp_path))
