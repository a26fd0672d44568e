"""The built-in world's network with tiny random weights: all that the real one does, in milliseconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from worldcache.models.doom.transformer import ActionTransformer3DModel
from worldcache.models.doom.world import DoomWorldModel, Start
from worldcache.models.registry import load_model
from worldcache.training.collect import SCENARIOS
from worldcache.training.export import export_model


def export_tiny_model(path: Path) -> None:
    """Write a model with one start, ``centre``, as training exports it."""
    torch.manual_seed(0)
    network = ActionTransformer3DModel(width=32, depth=1, heads=2, head_hidden=8)
    for parameter in network.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.02)
    rng = np.random.default_rng(0)
    start = Start(rng.integers(0, 62, (4, 48, 64, 4), dtype=np.uint8), (1, 1, 2, 3))
    export_model(path, network, SCENARIOS["basic"], {"centre": start}, model_id="doom", depth_max=62.0)


def load_tiny_model(path: Path) -> DoomWorldModel:
    """Export to ``path``, and load from there."""
    export_tiny_model(path)
    model = load_model("doom", path=path)
    assert isinstance(model, DoomWorldModel)
    return model
