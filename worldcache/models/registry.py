"""World models by name. A model's package is imported when the model is first asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import cast

import torch
from safetensors import SafetensorError, safe_open

from worldcache.errors import InvalidInput, UnknownName
from worldcache.models.base import WorldModel

_LOADERS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {"doom": ("worldcache.models.doom.world", "DoomWorldModel")}
)

DTYPES = MappingProxyType({"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16})

INTEGER_BYTES = 8
"""Of a weight that is no float; there are hardly any."""


def model_names() -> tuple[str, ...]:
    """The models that can be loaded by name."""
    return tuple(_LOADERS)


def load_model(
    name: str,
    *,
    path: str | Path | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    compile: bool = False,
    cuda_graphs: bool = False,
    max_batch: int = 8,
) -> WorldModel:
    """Load a model, ready to be warmed.

    Args:
        name: one of :func:`model_names`.
        path: folder of other weights in the model's layout; the ones that ship with the package if
            left out.
        device: where torch should put it, for example ``cpu`` or ``cuda:0``.
        dtype: of the weights and the backbone's arithmetic: ``float32``, ``bfloat16`` or ``float16``.
        compile: run the backbone through ``torch.compile``.
        cuda_graphs: run the backbone through CUDA graphs.
        max_batch: most backbone rows in one call, which ``warm`` then prepares for.

    Raises:
        UnknownName: no model has this name.
        InvalidInput: the dtype, the device, ``compile`` or ``cuda_graphs`` cannot be used.
        ModelLoadError: weights are missing or do not fit.
    """
    module, attribute = _find(name)
    _check_dtype(dtype)
    try:
        place = torch.device(device)
    except RuntimeError:
        raise InvalidInput(f"{device!r} is not a torch device", param="device") from None
    loader = getattr(import_module(module), attribute)
    model = cast(WorldModel, loader.load(path, device=place, dtype=DTYPES[dtype]))
    if compile or cuda_graphs:
        model.optimise(compile=compile, cuda_graphs=cuda_graphs, max_batch=max_batch)
    return model


def weight_bytes(name: str, *, path: str | Path | None = None, dtype: str = "float32") -> int:
    """Bytes that the weights of a model would take once loaded; 0 if there are none to be read.

    Reads the heads of the folder's safetensors files, and neither imports the model's package nor loads
    anything.

    Args:
        name, path, dtype: as of :func:`load_model`.

    Raises:
        UnknownName: no model, or no dtype, has this name.
    """
    module, _ = _find(name)
    _check_dtype(dtype)
    package = Path(__file__).parents[1].joinpath(*module.split(".")[1:-1])
    folder = Path(path) if path is not None else package / "pretrained"
    try:
        return sum(_file_bytes(file, DTYPES[dtype].itemsize) for file in folder.rglob("*.safetensors"))
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
    if name not in _LOADERS:
        raise UnknownName("model", name, model_names(), param="model")
    return _LOADERS[name]


def _check_dtype(dtype: str) -> None:
    if dtype not in DTYPES:
        raise UnknownName("dtype", dtype, DTYPES, param="dtype")
