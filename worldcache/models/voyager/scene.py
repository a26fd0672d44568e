"""What the camera saw, and what of it can be seen from elsewhere: a cloud of points and its pictures.

All of it is done on the host in float64, so that a picture depends neither on the device nor on what else
runs. Source: HunyuanWorld-Voyager's published input tool.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from worldcache.actions import Pose

Floats: TypeAlias = NDArray[np.floating[Any]]

FAR = 60_000.0
"""Points from this distance on are not drawn."""

PERCENTILES = (2, 98)
"""What becomes 0 and 1 of a frame's inverse depth."""


@dataclass(frozen=True)
class Scene:
    """One frame with its depth.

    Attributes:
        image: uint8 ``[H, W, 3]``.
        depth: float32 ``[H, W]``, the distance along the direction of view; 0 where it is unknown.
    """

    image: NDArray[np.uint8]
    depth: NDArray[np.float32]


@dataclass(frozen=True)
class Drawing:
    """A scene from another place.

    Attributes:
        image: uint8 ``[h, w, 3]``, black where nothing is known.
        depth: float64 ``[h, w]``, infinite where nothing is known.
    """

    image: NDArray[np.uint8]
    depth: NDArray[np.float64]

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Where something is known."""
        return np.isfinite(self.depth)


def back_project(depth: NDArray[np.float32], focal: float) -> NDArray[np.float64]:
    """The points ``[H * W, 3]`` of a depth map, seen by a camera of ``focal`` pixels; rounded to float32."""
    height, width = depth.shape
    columns, rows = np.meshgrid(np.arange(width) - width // 2, np.arange(height) - height // 2)
    z = depth.astype(np.float64)
    points = np.stack([columns * z / focal, rows * z / focal, z], axis=-1)
    with np.errstate(over="ignore"):  # what is that far away is not drawn
        return points.reshape(-1, 3).astype(np.float32).astype(np.float64)


def world_to_camera(poses: Sequence[Pose]) -> NDArray[np.float64]:
    """Inverses ``[N, 4, 4]`` of camera-to-world matrices, after one for the identity."""
    inverse = np.tile(np.eye(4), (1 + len(poses), 1, 1))
    for matrix, pose in zip(inverse[1:], np.array(poses, dtype=np.float64), strict=True):
        matrix[:3, :3] = pose[:3, :3].T
        matrix[:3, 3] = -pose[:3, :3].T @ pose[:3, 3]
    return inverse


def draw(
    points: NDArray[np.float64],
    colours: NDArray[np.uint8],
    extrinsic: NDArray[np.float64],
    focal: float,
    size: tuple[int, int],
) -> Drawing:
    """The points as a camera sees them.

    A pixel shows the nearest of the points that fall on it. Its depth is that of the farthest one: the
    published tool writes them there from near to far, and the model was given such maps. Many points fall
    between two pixels exactly, so the products below are those of the published tool, one for one.

    Args:
        points, colours: ``[P, 3]`` each.
        extrinsic: world-to-camera ``[4, 4]``.
        focal: in pixels.
        size: height and width of the picture.
    """
    height, width = size
    intrinsic = np.array([[focal, 0, width // 2], [0, focal, height // 2], [0, 0, 1]])
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # such points land nowhere
        camera = (extrinsic @ np.hstack((points, np.ones((len(points), 1)))).T).T[:, :3]
        projected = (intrinsic @ camera.T).T
        z = projected[:, 2]
        columns, rows = np.round(projected[:, 0] / z), np.round(projected[:, 1] / z)
        inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height) & (z > 0) & (z < FAR)
    z, colours = z[inside], colours[inside]
    pixels = rows[inside].astype(np.intp) * width + columns[inside].astype(np.intp)

    nearest, farthest = np.full(height * width, np.inf), np.zeros(height * width)
    np.minimum.at(nearest, pixels, z)
    np.maximum.at(farthest, pixels, z)
    image = np.zeros((height * width, 3), np.uint8)
    shown = z == nearest[pixels]
    image[pixels[shown]] = colours[shown]
    depth = np.where(farthest > 0, farthest, np.inf)
    return Drawing(image.reshape(height, width, 3), depth.reshape(height, width))


def inverse_range(drawing: Drawing) -> tuple[float, float]:
    """The inverse depths that become 0 and 1 in a frame; (0, 0) if it shows nothing."""
    known = _inverse(drawing.depth[drawing.mask])
    if not known.size:
        return 0.0, 0.0
    low, high = np.percentile(known, PERCENTILES)
    return float(low), float(high)


def relative_inverse(drawing: Drawing) -> NDArray[np.float64]:
    """A frame's inverse depth, 0 to 1 from its 2nd to its 98th percentile, and beyond outside of them.

    What is unknown gets the frame's lowest value. A frame that shows nothing, or one depth only, is 0.
    """
    mask, values = drawing.mask, np.zeros(drawing.depth.shape)
    low, high = inverse_range(drawing)
    if high > low:
        known = (_inverse(drawing.depth[mask]) - low) / (high - low)
        values[mask], values[~mask] = known, known.min()
    return values


def depth_from_relative(values: Floats, low: float, high: float) -> NDArray[np.float32]:
    """Distances from relative inverse depths of 0 to 1, given what those stand for."""
    inverse = np.asarray(values, np.float64) * (high - low) + low
    return np.maximum(1 / np.maximum(inverse, 1 / FAR) - 1e-6, 0).astype(np.float32)


def enlarge(values: NDArray[Any]) -> NDArray[Any]:
    """``[h, w, ...]`` at twice the size, interpolated linearly between the pixels' centres.

    Bytes are rounded as OpenCV does it: each row's share is cut down to a quarter first.
    """
    if values.dtype == np.uint8:
        wide = _double(values.astype(np.int16), 1, lambda near, far: 3 * near + far)
        return _double(wide, 0, lambda near, far: (3 * near // 4 + far // 4 + 2) // 4).astype(np.uint8)
    wide = _double(values, 1, lambda near, far: 0.75 * near + 0.25 * far)
    return _double(wide, 0, lambda near, far: 0.75 * near + 0.25 * far)


def _double(
    values: NDArray[Any], axis: int, mix: Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]
) -> NDArray[Any]:
    """Twice as many values along an axis, each mixed from the nearer and the farther of two neighbours."""
    places = np.arange(values.shape[axis])
    before = values.take(np.maximum(places - 1, 0), axis)
    after = values.take(np.minimum(places + 1, len(places) - 1), axis)
    pairs = np.stack([mix(values, before), mix(values, after)], axis + 1)
    return pairs.reshape(*values.shape[:axis], 2 * len(places), *values.shape[axis + 1 :])


def _inverse(depth: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (depth + 1e-6)
