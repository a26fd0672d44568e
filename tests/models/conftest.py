"""The built-in world with tiny random weights, through the same loading code as the real ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import worldcache
from worldcache.models.doom.transformer import ActionTransformer3DModel
from worldcache.models.doom.world import DoomWorldModel, Start
from worldcache.training.collect import SCENARIOS
from worldcache.training.export import export_model


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = ActionTransformer3DModel(width=32, depth=1, heads=2, head_hidden=8)
    for parameter in network.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.02)
    rng = np.random.default_rng(0)
    start = Start(rng.integers(0, 62, (4, 48, 64, 4), dtype=np.uint8), (1, 1, 2, 3))
    path = tmp_path_factory.mktemp("model")
    export_model(path, network, SCENARIOS["basic"], {"centre": start}, model_id="doom", depth_max=62.0)
    return path


@pytest.fixture(scope="package")
def model(folder: Path) -> DoomWorldModel:
    loaded = worldcache.load_model("doom", path=folder)
    assert isinstance(loaded, DoomWorldModel)
    return loaded
