"""The tiny model, through the same loading code as the real one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.models.sana_wm.tiny import write_folder
from worldcache.engine.parallel import num_threads
from worldcache.models.registry import load_model
from worldcache.models.sana_wm.world import SanaWMWorldModel


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("sana-wm"))


@pytest.fixture(scope="package")
def model(folder: Path) -> SanaWMWorldModel:
    """Without a text encoder."""
    return load(folder)


@pytest.fixture(scope="package")
def reader(tmp_path_factory: pytest.TempPathFactory) -> SanaWMWorldModel:
    """With one."""
    return load(write_folder(tmp_path_factory.mktemp("sana-wm-text"), text_encoder=True))


def load(folder: Path) -> SanaWMWorldModel:
    loaded = load_model("sana-wm", path=folder)
    assert isinstance(loaded, SanaWMWorldModel)
    return loaded


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The engine computes with one thread where a pipeline takes all: sums would be rounded differently."""
    with num_threads(1):
        yield
