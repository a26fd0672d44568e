"""Tiny Aethers: a random one, and one for each recording of the published pipeline."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.models.aether.golden import Recording, recordings
from tests.models.aether.tiny import write_folder
from worldcache.models.aether.world import AetherWorldModel


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("aether"))


@pytest.fixture(scope="package")
def model(folder: Path) -> AetherWorldModel:
    return AetherWorldModel.load(folder, device=torch.device("cpu"), dtype=torch.float32)


@pytest.fixture(scope="package", params=recordings())
def recording(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    return Recording.load(request.param, tmp_path_factory.mktemp(request.param))
