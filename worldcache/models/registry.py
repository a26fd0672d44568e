"""World models by name. A model's package is imported when the model is first asked for."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open

from worldcache.errors import InvalidInput, ModelLoadError, UnknownName
from worldcache.models.base import WorldModel

_LOADERS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "doom": ("worldcache.models.doom.world", "DoomWorldModel"),
        "aether": ("worldcache.models.aether.world", "AetherWorldModel"),
        "voyager": ("worldcache.models.voyager.world", "VoyagerWorldModel"),
        "sana-wm": ("worldcache.models.sana_wm.world", "SanaWMWorldModel"),
        "diffusers": ("worldcache.models.pipeline.world", "PipelineWorldModel"),
    }
)

DTYPES = MappingProxyType({"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16})

PICKLES = ("*.pt", "*.pth", "*.bin")
PICKLED_BYTES = 2
"""Of a float in a pickle, which cannot be looked into without loading it: such checkpoints are halves."""

INTEGER_BYTES = 8
"""Of a weight that is no float; there are hardly any."""


def model_names() -> tuple[str, ...]:
    """The families of models that come with the library."""
    return tuple(_LOADERS)


def load_model(
    name: str,
    *,
    path: str | Path | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    offload: bool = False,
    compile: bool = False,
    cuda_graphs: bool = False,
    max_batch: int = 8,
) -> WorldModel:
    """Load a model, ready to be warmed.

    Args:
        name: one of :func:`model_names`, or where else a class of models is: ``package.module.Class``.
        path: folder of weights in the model's layout, or a hub id where the model takes one; the model's
            own if left out.
        device: where torch should put it, for example ``cpu`` or ``cuda:0``.
        dtype: of the weights and the backbone's arithmetic: ``float32``, ``bfloat16`` or ``float16``.
        offload: keep on the host what is not in use, for the time that bringing it takes.
        compile: run the backbone through ``torch.compile``.
        cuda_graphs: run the backbone through CUDA graphs.
        max_batch: most backbone rows in one call, which ``warm`` then prepares for.

    Raises:
        UnknownName: no model has this name.
        InvalidInput: the dtype, the device, ``offload``, ``compile`` or ``cuda_graphs`` cannot be used.
        ModelLoadError: weights are missing or do not fit.
    """
    module, attribute = _find(name)
    _check_dtype(dtype)
    try:
        place = torch.device(device)
    except RuntimeError:
        raise InvalidInput(f"{device!r} is not a torch device", param="device") from None
    loader = _import(name, module, attribute)
    options = {"offload": True} if offload else {}
    try:
        inspect.signature(loader.load).bind(path, device=place, dtype=DTYPES[dtype], **options)
    except TypeError:
        raise InvalidInput(f"model {name!r} cannot offload; leave it off", param="offload") from None
    model = cast(WorldModel, loader.load(path, device=place, dtype=DTYPES[dtype], **options))
    if compile or cuda_graphs:
        model.optimise(compile=compile, cuda_graphs=cuda_graphs, max_batch=max_batch)
    return model


def weight_bytes(name: str, *, path: str | Path | None = None, dtype: str = "float32") -> int:
    """Bytes that the weights of a model would take once loaded; 0 if there are none to be read.

    Reads the heads of the folder's safetensors files and the sizes of its pickles, and neither imports the
    model's package nor loads anything.

    Args:
        name, path, dtype: as of :func:`load_model`.

    Raises:
        UnknownName: no model, or no dtype, has this name.
    """
    module, _ = _find(name)
    _check_dtype(dtype)
    if path is None and name not in _LOADERS:
        return 0
    package = Path(__file__).parents[1].joinpath(*module.split(".")[1:-1])
    folder = Path(path) if path is not None else package / "pretrained"
    try:
        size = DTYPES[dtype].itemsize
        known = sum(_file_bytes(file, size) for file in folder.rglob("*.safetensors"))
        pickled = sum(file.stat().st_size for ending in PICKLES for file in folder.rglob(ending))
        return known + pickled * size // PICKLED_BYTES
    except (OSError, SafetensorError):
        return 0


def _file_bytes(path: Path, float_bytes: int) -> int:
    """Bytes of a file's tensors, every float as ``float_bytes`` bytes."""
    with safe_open(path, "pt") as weights:
        parts = [weights.get_slice(key) for key in weights.keys()]
        return sum(
            math.prod(part.get_shape()) * (float_bytes if "F" in part.get_dtype() else INTEGER_BYTES)
            for part in parts
        )


def _find(name: str) -> tuple[str, str]:
    """Module and class of a model's family."""
    if name in _LOADERS:
        return _LOADERS[name]
    module, dot, attribute = name.rpartition(".")
    if not dot or not all(part.isidentifier() for part in name.split(".")):
        raise UnknownName("model", name, model_names(), param="model")
    return module, attribute


def _import(name: str, module: str, attribute: str) -> Any:
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ModelLoadError(f"model {name!r} cannot be imported: {error}") from error


def _check_dtype(dtype: str) -> None:
    if dtype not in DTYPES:
        raise UnknownName("dtype", dtype, DTYPES, param="dtype")
