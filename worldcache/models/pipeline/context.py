"""What a pipeline's chunk is conditioned on, and how it is written down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worldcache.errors import InvalidInput
from worldcache.models.context import ArraySpec, check_arrays

TEXTS = ("prompt", "negative_prompt")


@dataclass(frozen=True)
class PipelineContext:
    """What a chunk is conditioned on.

    Attributes:
        image: uint8 ``[H, W, 3]``.
        prompt, negative_prompt: texts; ``None`` for the pipeline's own.
    """

    image: NDArray[np.uint8]
    prompt: str | None = None
    negative_prompt: str | None = None


def write_context(context: PipelineContext) -> dict[str, NDArray[Any]]:
    """A context as arrays: the image, and each text that there is as UTF-8."""
    arrays: dict[str, NDArray[Any]] = {"image": context.image.copy()}
    for name in TEXTS:
        text = getattr(context, name)
        if text is not None:
            arrays[name] = np.frombuffer(text.encode(), np.uint8).copy()
    return arrays


def read_context(arrays: Mapping[str, NDArray[Any]], resolution: tuple[int, int]) -> PipelineContext:
    """The context that :func:`write_context` wrote, of a model with this resolution.

    Raises:
        InvalidInput: it did not; ``param`` names the array at fault.
    """
    texts = {name: _read_text(arrays[name], name) for name in TEXTS if name in arrays}
    rest = {name: array for name, array in arrays.items() if name not in texts}
    check_arrays(rest, {"image": ArraySpec(np.dtype(np.uint8), (*resolution, 3), 0, 255)})
    return PipelineContext(rest["image"].copy(), **texts)


def _read_text(array: NDArray[Any], name: str) -> str:
    if array.dtype != np.uint8 or array.ndim != 1:
        raise InvalidInput(f"{name!r} must be the bytes of a text, uint8 [n]", param=name)
    try:
        return array.tobytes().decode()
    except UnicodeDecodeError:
        raise InvalidInput(f"{name!r} is no UTF-8", param=name) from None
