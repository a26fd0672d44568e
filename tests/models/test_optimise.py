"""How a backbone is run, and what is known of weights before they are loaded."""

from __future__ import annotations

import gc
import shutil
import weakref
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

import worldcache
from tests.toy import ToyWorldModel
from worldcache.core import Observation
from worldcache.errors import InvalidInput, UnknownName
from worldcache.models.base import Row, WorldModel
from worldcache.models.doom.world import DoomWorldModel
from worldcache.models.registry import weight_bytes
from worldcache.models.transfer import to_device, to_host


def rows(model: WorldModel, count: int) -> list[Row]:
    """Rows that differ in everything."""
    context = model.begin(Observation(start="centre"))
    return [
        Row(
            model.initial_latent(None, 4, torch.Generator().manual_seed(index)),
            950.0 - 90 * index,
            model.condition(context, (index % 4,) * 4, torch.Generator()),
        )
        for index in range(count)
    ]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@torch.inference_mode()
def test_a_compiled_backbone_computes_the_same(model: DoomWorldModel, folder: Path) -> None:
    compiled = worldcache.load_model("doom", path=folder, compile=True, max_batch=3)
    compiled.warm()
    graphs = counters["stats"]["unique_graphs"]
    assert graphs
    for count in (1, 2, 3):
        torch.testing.assert_close(
            compiled.evaluate(rows(compiled, count)),
            model.evaluate(rows(model, count)),
            rtol=1e-5,
            atol=1e-5,
        )
    assert counters["stats"]["unique_graphs"] == graphs, "warming left a batch size out"
    weights = weakref.ref(next(iter(compiled.transformer.parameters())))  # type: ignore[attr-defined]
    del compiled
    gc.collect()
    assert weights() is None


def test_cuda_graphs_need_cuda(folder: Path) -> None:
    with pytest.raises(InvalidInput, match="CUDA device") as caught:
        worldcache.load_model("doom", path=folder, cuda_graphs=True)
    assert caught.value.param == "cuda_graphs"


@pytest.mark.parametrize("option", ["compile", "cuda_graphs"])
def test_a_model_without_optimisation_says_so(option: str) -> None:
    toy = ToyWorldModel()
    toy.optimise()
    with pytest.raises(InvalidInput, match="supports neither") as caught:
        toy.optimise(**{option: True})
    assert (caught.value.param, caught.value.code) == (option, "not_supported")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_weights_are_weighed_before_they_are_loaded(folder: Path, dtype: str) -> None:
    loaded = worldcache.load_model("doom", path=folder, dtype=dtype)
    assert weight_bytes("doom", path=folder, dtype=dtype) == loaded.memory_bytes


def test_weights_that_cannot_be_read_weigh_nothing(tmp_path: Path) -> None:
    assert weight_bytes("doom", path=tmp_path) == 0
    (tmp_path / "broken.safetensors").write_bytes(b"no weights")
    assert weight_bytes("doom", path=tmp_path) == 0
    with pytest.raises(UnknownName):
        weight_bytes("quake")


def test_transfers_on_the_host_copy_nothing() -> None:
    tensor = torch.ones(2)
    assert to_device(tensor, torch.device("cpu")) is tensor
    assert to_host(tensor) is tensor
