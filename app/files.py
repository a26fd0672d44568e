"""A finished rollout as one file, chosen by its ending. What a format needs is imported when it is used."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from worldcache.core import Frames, ModelInfo

Encoder: TypeAlias = Callable[[Frames, ModelInfo], bytes]

SHEET_COLUMNS = 8
"""Frames in a line of a contact sheet."""

SHEET_HEIGHT = 96
"""Smaller frames are enlarged by a whole factor to this height in a contact sheet."""

VIDEO_HEIGHT = 240
"""The same for videos."""


def contact_sheet(frames: Frames, info: ModelInfo) -> NDArray[np.uint8]:
    """One picture ``[H, W, 3]``: frames from left to right, the modalities below each other, wrapped."""
    from app import media

    modalities = [media.enlarge(pixels, SHEET_HEIGHT) for pixels in _pixels(frames, info)]
    count, height, width, _ = modalities[0].shape
    columns = min(count, SHEET_COLUMNS)
    lines = -(-count // columns)
    padded = np.zeros((len(modalities), lines * columns, height, width, 3), np.uint8)
    padded[:, :count] = modalities
    grid = padded.reshape(len(modalities), lines, columns, height, width, 3).transpose(1, 0, 3, 2, 4, 5)
    return grid.reshape(lines * len(modalities) * height, columns * width, 3)


def _pixels(frames: Frames, info: ModelInfo) -> list[NDArray[np.uint8]]:
    """Each modality as uint8 ``[F, H, W, 3]``."""
    from app import media

    return [media.to_pixels(frames[modality.name], modality) for modality in info.pictures]


def _encode_contact_sheet(frames: Frames, info: ModelInfo) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(contact_sheet(frames, info)).save(stream, "PNG")
    return stream.getvalue()


def _encode_video(format: str, frames: Frames, info: ModelInfo) -> bytes:
    """The modalities above each other."""
    from app import media

    enlarged = [media.enlarge(pixels, VIDEO_HEIGHT) for pixels in _pixels(frames, info)]
    return media.encode_video(np.concatenate(enlarged, axis=1), info.fps, format)


def _encode_arrays(frames: Frames, info: ModelInfo) -> bytes:
    from app import media

    return media.to_npz(frames)


ENCODERS: Mapping[str, Encoder] = MappingProxyType(
    {
        ".mp4": partial(_encode_video, "mp4"),
        ".webp": partial(_encode_video, "webp"),
        ".png": _encode_contact_sheet,
        ".npz": _encode_arrays,
    }
)
