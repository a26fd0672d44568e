"""Contexts that come back from outside: what their arrays must be before a model takes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worldcache.errors import InvalidInput


@dataclass(frozen=True)
class ArraySpec:
    """What one array must be: its type, its shape, and the range of its values, which are finite."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    low: float
    high: float


def check_arrays(arrays: Mapping[str, NDArray[Any]], specs: Mapping[str, ArraySpec]) -> None:
    """Refuse arrays that are not exactly those of ``specs``.

    Raises:
        InvalidInput: ``param`` names the array that is missing, unknown or wrong.
    """
    for name in arrays:
        if name not in specs:
            raise InvalidInput(f"there is no array {name!r}; use {', '.join(specs)}", param=name)
    for name, spec in specs.items():
        array = arrays.get(name)
        if array is None:
            raise InvalidInput(f"the array {name!r} is missing", param=name)
        if array.dtype != spec.dtype or array.shape != spec.shape:
            wanted = f"{spec.dtype} {list(spec.shape)}"
            raise InvalidInput(
                f"{name!r} must be {wanted}, not {array.dtype} {list(array.shape)}", param=name
            )
        # written so that a value which is no number is refused as well
        if not ((array >= spec.low) & (array <= spec.high)).all():
            raise InvalidInput(f"the values of {name!r} must be {spec.low} to {spec.high}", param=name)
