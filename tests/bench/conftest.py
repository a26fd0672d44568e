"""A benchmark of the toy model on recorded noise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.toy import SIZE, ToyWorldModel
from worldcache.bench.run import Bench
from worldcache.bench.settings import SETTINGS
from worldcache.bench.store import Store
from worldcache.bench.work import Material, Sizes, Subject
from worldcache.training.collect import Episode, save_episodes


@pytest.fixture
def make_bench(tmp_path: Path) -> Callable[..., Bench]:
    """A benchmark of a toy model in the test's folder; called again it goes on there."""
    rng = np.random.default_rng(0)
    episodes = [
        Episode(
            rng.integers(0, 60, (24, *SIZE, 4), np.uint8),
            rng.integers(0, 4, 24).astype(np.uint8),
            np.zeros((24, 2), np.float32),
        )
        for _ in range(3)
    ]
    recording = tmp_path / "heldout.npz"
    save_episodes(recording, episodes)

    def make(model: ToyWorldModel, setting: str = "base", **sizes: int) -> Bench:
        small = {
            "chunks": 3,
            "rollouts": 0,
            "reference_chunks": 0,
            "tuning_chunks": 1,
            "rollout_frames": 8,
            "judge_steps": 0,
        }
        material = Material(
            Subject("toy", heldout=recording, judge=recording),
            model.info,
            tmp_path,
            Sizes(**{**small, **sizes}),
        )
        store = Store(tmp_path / "results.jsonl")
        return Bench(model, "weights", SETTINGS[setting], material, store, num_steps=20)

    return make
