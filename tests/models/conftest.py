"""The built-in world with tiny random weights, through the same loading code as the real ones."""

from __future__ import annotations

from pathlib import Path

import pytest

import worldcache
from tests.tiny import export_tiny_model
from worldcache.models.doom.world import DoomWorldModel


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    export_tiny_model(path)
    return path


@pytest.fixture(scope="package")
def model(folder: Path) -> DoomWorldModel:
    loaded = worldcache.load_model("doom", path=folder)
    assert isinstance(loaded, DoomWorldModel)
    return loaded
