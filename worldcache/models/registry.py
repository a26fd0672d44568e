"""World models by name. A model's package is imported when the model is first asked for."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import cast

import torch

from worldcache.errors import InvalidInput, UnknownName
from worldcache.models.base import WorldModel

_LOADERS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {"doom": ("worldcache.models.doom.world", "DoomWorldModel")}
)

DTYPES = MappingProxyType({"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16})


def model_names() -> tuple[str, ...]:
    """The models that can be loaded by name."""
    return tuple(_LOADERS)


def load_model(
    name: str, *, path: str | Path | None = None, device: str = "cpu", dtype: str = "float32"
) -> WorldModel:
    """Load a model, ready to be warmed.

    Args:
        name: one of :func:`model_names`.
        path: folder of other weights in the model's layout; the ones that ship with the package if
            left out.
        device: where torch should put it, for example ``cpu`` or ``cuda:0``.
        dtype: of the weights and the backbone's arithmetic: ``float32``, ``bfloat16`` or ``float16``.

    Raises:
        UnknownName: no model has this name.
        InvalidInput: the dtype or the device cannot be used.
        ModelLoadError: weights are missing or do not fit.
    """
    if name not in _LOADERS:
        raise UnknownName("model", name, model_names(), param="model")
    if dtype not in DTYPES:
        raise UnknownName("dtype", dtype, DTYPES, param="dtype")
    try:
        place = torch.device(device)
    except RuntimeError:
        raise InvalidInput(f"{device!r} is not a torch device", param="device") from None
    module, attribute = _LOADERS[name]
    loader = getattr(import_module(module), attribute)
    return cast(WorldModel, loader.load(path, device=place, dtype=DTYPES[dtype]))
