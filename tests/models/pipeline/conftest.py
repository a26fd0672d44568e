"""The pipelines under test, loaded from folders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import DiffusionPipeline, WanTransformer3DModel
from diffusers.pipelines.wan import pipeline_wan_i2v

from tests.models.pipeline.tiny import PIPELINES, save
from worldcache.models.pipeline.world import PipelineWorldModel


@pytest.fixture(scope="session", autouse=True)
def _without_optional_packages() -> Iterator[None]:
    """Wan cleans texts with one package, and loads the weights of half-precision models with another."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline_wan_i2v, "ftfy", SimpleNamespace(fix_text=str), raising=False)
        patch.setattr(WanTransformer3DModel, "_keep_in_fp32_modules", None)
        yield


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: save(name, tmp_path_factory.mktemp("pipelines") / name) for name in PIPELINES}


@pytest.fixture(scope="session", params=PIPELINES)
def folder(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Path:
    """The folder of each pipeline."""
    return folders[request.param]


@pytest.fixture(scope="session")
def model(folder: Path) -> PipelineWorldModel:
    return PipelineWorldModel.load(folder, device=torch.device("cpu"), dtype=torch.float32)


@pytest.fixture
def plain(folder: Path) -> DiffusionPipeline:
    """The same pipeline, loaded by diffusers and left alone."""
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe
