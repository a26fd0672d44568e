"""Frames as files: videos, pictures and arrays. Slow enough to be kept off the event loop."""

from __future__ import annotations

import io
from collections.abc import Mapping
from fractions import Fraction
from types import MappingProxyType
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.npz import FrameFile
from worldcache.core import Frames, Modality

Pixels = NDArray[np.uint8]

MEDIA_TYPES: Mapping[str, str] = MappingProxyType(
    {
        "mp4": "video/mp4",
        "webp": "image/webp",
        "png": "image/png",
        "jpeg": "image/jpeg",
        "npz": "application/x-npz",
    }
)


def to_npz(frames: Frames) -> bytes:
    """One compressed array per modality."""
    stream = io.BytesIO()
    np.savez_compressed(stream, allow_pickle=False, **frames)
    return stream.getvalue()


def from_npz(data: bytes) -> dict[str, NDArray[Any]]:
    """What :func:`to_npz` wrote."""
    file = FrameFile(data)
    return {name: file.all(name) for name in file.modalities}


def to_pixels(values: NDArray[Any], modality: Modality) -> Pixels:
    """uint8 ``[F, H, W, 3]``; maps become shades of grey, white at the modality's ``high``."""
    if values.ndim == 4:
        return np.asarray(values, np.uint8)
    grey = np.clip(values / modality.high * 255, 0, 255).round().astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


def enlarge(pixels: Pixels, min_height: int) -> Pixels:
    """Repeat pixels by a whole factor, so that small frames can be seen."""
    factor = -(-min_height // pixels.shape[1])
    return pixels.repeat(factor, axis=1).repeat(factor, axis=2) if factor > 1 else pixels


def encode_video(pixels: Pixels, fps: float, format: str, min_height: int = 1) -> bytes:
    """An ``mp4`` (H.264) or an animated ``webp`` of uint8 ``[F, H, W, 3]``, enlarged to ``min_height``."""
    if format == "webp":
        return _encode_webp(enlarge(pixels, min_height), fps)
    stream = io.BytesIO()
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    with av.open(stream, "w", format="mp4") as container:
        video = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1000))
        assert isinstance(video, av.VideoStream)
        video.height, video.width = _video_picture(pixels[0], min_height).shape[:2]
        video.pix_fmt = "yuv420p"
        if codec == "libx264":
            video.options = {"crf": "18", "preset": "veryfast"}
        for picture in pixels:
            frame = av.VideoFrame.from_ndarray(_video_picture(picture, min_height), format="rgb24")
            container.mux(video.encode(frame))
        container.mux(video.encode())
    return stream.getvalue()


def _video_picture(picture: Pixels, min_height: int) -> Pixels:
    """One frame as large as the video, with even sides."""
    large = enlarge(picture[None], min_height)[0]
    return np.pad(large, ((0, large.shape[0] % 2), (0, large.shape[1] % 2), (0, 0)), mode="edge")


def _encode_webp(pixels: Pixels, fps: float) -> bytes:
    first, *rest = (Image.fromarray(picture) for picture in pixels)
    stream = io.BytesIO()
    duration = max(1, round(1000 / fps))
    first.save(
        stream, "WEBP", save_all=True, append_images=rest, duration=duration, loop=0, quality=90, method=2
    )
    return stream.getvalue()


def encode_picture(values: NDArray[Any], modality: Modality, format: str) -> bytes:
    """One frame at its own size as ``png`` or ``jpeg``.

    A map as PNG has 16 bits: a count is ``high / 65535`` of the modality's unit.
    """
    stream = io.BytesIO()
    if values.ndim == 2 and format == "png":
        counts = np.clip(values / modality.high * 65535, 0, 65535).round().astype(np.uint16)
        Image.fromarray(counts).save(stream, "PNG")
    else:
        picture = Image.fromarray(to_pixels(values[None], modality)[0])
        picture.save(stream, format.upper(), quality=95)
    return stream.getvalue()
