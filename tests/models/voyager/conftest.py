"""One tiny model for all tests that do not change it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.models.voyager.tiny import write_folder
from worldcache.models.registry import load_model
from worldcache.models.voyager.world import VoyagerWorldModel


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("voyager"))


@pytest.fixture(scope="package")
def model(folder: Path) -> VoyagerWorldModel:
    loaded = load_model("voyager", path=folder)
    assert isinstance(loaded, VoyagerWorldModel)
    return loaded
