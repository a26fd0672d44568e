"""Images and depth maps of clients: checked before they are decoded, brought to the model's size."""

from __future__ import annotations

import base64
import binascii
import io
import math
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from app.errors import ApiError
from app.npz import MAGIC, read_npy_header
from app.schemas import ObservationBody
from worldcache.core import ModelInfo, Observation

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP")


def read_observation(
    body: ObservationBody, info: ModelInfo, *, max_bytes: int, max_pixels: int
) -> Observation:
    """Decode an observation for a model. Takes milliseconds per image: not for the event loop.

    Raises:
        ApiError: the message names the image at fault.
    """
    if body.start is not None:
        return Observation(start=body.start)
    frames = [
        read_image(text, f"observation.frames.{index}", info=info, max_bytes=max_bytes, max_pixels=max_pixels)
        for index, text in enumerate(body.frames or ())
    ]
    depth = None
    if body.depth is not None:
        depth = np.stack(
            [
                _read_depth(
                    text, f"observation.depth.{i}", body.depth_scale, info.resolution, max_bytes, max_pixels
                )
                for i, text in enumerate(body.depth)
            ]
        )
    return Observation(frames=np.stack(frames), depth=depth)


def read_image(
    text: str, param: str, *, info: ModelInfo, max_bytes: int, max_pixels: int
) -> NDArray[np.uint8]:
    """Decode an image and bring it to the model's size, its middle if the sides are of another proportion.

    Returns:
        uint8 ``[H, W, 3]``.

    Raises:
        ApiError: the message names ``param``.
    """
    image = _open_image(_decode(text, param, max_bytes), param, max_pixels).convert("RGB")
    return np.asarray(_fit(image, info.resolution, Image.Resampling.BOX))


def _fit(image: Image.Image, resolution: tuple[int, int], method: Image.Resampling) -> Image.Image:
    height, width = resolution
    larger = method is Image.Resampling.BOX and image.width < width and image.height < height
    return ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC if larger else method)


def _decode(text: str, param: str, max_bytes: int) -> bytes:
    """The bytes of base64 text or of a ``data:`` URI."""
    if text.startswith("data:"):
        head, comma, text = text.partition(",")
        if not comma or not head.endswith(";base64"):
            raise ApiError(422, "invalid_image", f"{param}: a data URI must hold base64", param=param)
    elif "://" in text[:16]:
        raise ApiError(
            422, "invalid_image", f"{param}: nothing is fetched from a URL; send the bytes", param=param
        )
    if len(text) > max_bytes * 4 // 3 + 4:
        raise ApiError(413, "image_too_large", f"{param}: at most {max_bytes} bytes", param=param)
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(422, "invalid_image", f"{param}: this is not base64", param=param) from None


def _open_image(data: bytes, param: str, max_pixels: int) -> Image.Image:
    """The decoded image; its size is read from the header and checked first."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
        if image.width * image.height > max_pixels:
            raise ApiError(
                413,
                "image_too_large",
                f"{param}: {image.width}x{image.height} is more than {max_pixels} pixels",
                param=param,
            )
        image.load()
        return image
    except Image.DecompressionBombError:
        message = f"{param}: more than {max_pixels} pixels"
        raise ApiError(413, "image_too_large", message, param=param) from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError):
        message = f"{param}: this is no readable PNG, JPEG or WebP image"
        raise ApiError(422, "invalid_image", message, param=param) from None


def _read_depth(
    text: str, param: str, scale: float | None, resolution: tuple[int, int], max_bytes: int, max_pixels: int
) -> NDArray[np.float32]:
    """A depth map in the model's unit, at the model's size."""
    data = _decode(text, param, max_bytes)
    if data.startswith(MAGIC):
        values = _load_npy(data, param, max_pixels)
    else:
        image = _open_image(data, param, max_pixels)
        if not image.mode.startswith("I"):
            raise ApiError(422, "invalid_depth", f"{param}: depth must be a 16-bit grey PNG", param=param)
        if scale is None:
            name = "observation.depth_scale"
            raise ApiError(422, "missing_field", f"{name}: a depth PNG needs it", param=name)
        with np.errstate(over="ignore"):
            values = np.asarray(image).astype(np.float32) * np.float32(scale)
    if not np.isfinite(values).all():
        raise ApiError(422, "invalid_depth", f"{param}: depth must be finite", param=param)
    resized = _fit(Image.fromarray(values), resolution, Image.Resampling.NEAREST)
    return np.asarray(resized, dtype=np.float32)


def _load_npy(data: bytes, param: str, max_pixels: int) -> NDArray[np.float32]:
    """A two-dimensional array of numbers from ``.npy`` bytes; its header is checked first."""
    try:
        header = read_npy_header(io.BytesIO(data))
        if len(header.shape) != 2 or not 0 < math.prod(header.shape) <= max_pixels:
            raise ValueError("not [H, W]")
        if header.dtype.kind not in "fiu":
            raise ValueError("not numbers")
        flat = np.frombuffer(data, header.dtype, math.prod(header.shape), header.begin)
        with np.errstate(over="ignore"):
            values = flat.reshape(header.shape, order="F" if header.fortran_order else "C").astype(np.float32)
    except ValueError:
        message = f"{param}: the .npy must hold numbers [H, W], at most {max_pixels} of them"
        raise ApiError(422, "invalid_depth", message, param=param) from None
    return np.ascontiguousarray(values)
