"""Pictures and arrays as bytes. Pictures need pillow, which is imported when the first one is met."""

from __future__ import annotations

import io
import threading
import zipfile
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worldcache.client.errors import InvalidInput, PillowMissing, UnexpectedAnswer

READ_FORMATS = ("PNG", "JPEG", "WEBP")

_READING = threading.Lock()
"""Numpy reads an array's header as Python, which fails in Python 3.11 if two threads do it at one moment."""


def _pillow() -> ModuleType:
    try:
        import PIL.Image
    except ImportError:
        message = "pictures need pillow: pip install 'worldcache[client]'; a rollout's frames() do without"
        raise PillowMissing(message) from None
    return PIL.Image


def encode_png(pixels: NDArray[Any]) -> bytes:
    """uint8 ``[H, W, 3]`` as PNG."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        message = f"a frame is uint8 [H, W, 3], not {pixels.dtype} {list(pixels.shape)}"
        raise InvalidInput(message)
    stream = io.BytesIO()
    _pillow().fromarray(np.ascontiguousarray(pixels)).save(stream, "PNG")
    return stream.getvalue()


def encode_npy(values: NDArray[Any]) -> bytes:
    """``[H, W]`` as float32 ``.npy``."""
    if values.dtype.kind not in "fiu" or values.ndim != 2 or not values.size:
        message = f"a depth map holds numbers [H, W], not {values.dtype} {list(values.shape)}"
        raise InvalidInput(message)
    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(values, np.float32), allow_pickle=False)
    return stream.getvalue()


def decode_picture(data: bytes, scale: float | None) -> NDArray[Any]:
    """A picture as uint8 ``[H, W, 3]``; with a scale, a map as float32 ``[H, W]``, its counts times that."""
    image = _pillow()
    try:
        values = np.asarray(image.open(io.BytesIO(data), formats=READ_FORMATS))
    except (OSError, SyntaxError, ValueError) as error:
        raise UnexpectedAnswer(f"this is no readable picture: {error}") from error
    return values if scale is None else values.astype(np.float32) * np.float32(scale)


def decode_npz(data: bytes) -> dict[str, NDArray[Any]]:
    """The arrays of an ``.npz`` by name."""
    try:
        with _READING, np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UnexpectedAnswer(f"this is no readable npz: {error}") from error
