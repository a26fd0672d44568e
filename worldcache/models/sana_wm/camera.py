"""From actions to what the backbone sees of the camera. Knows no weights.

Poses are camera-to-world matrices: x to the right, y down, z forward. A rollout's coordinates are those of
its observation's camera.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
from diffusers.pipelines.sana_wm.cam_utils import (
    ALLOWED_ACTION_KEYS,
    DEFAULT_PITCH_LIMIT_DEG,
    DEFAULT_ROTATION_SPEED_DEG,
    action_string_to_c2w,
)
from numpy.typing import NDArray

from worldcache.actions import CameraOrKeysActionSpace

KEYS = tuple(key for key in "wasdijkl" if key in ALLOWED_ACTION_KEYS)
"""Forward, left, back and right; look up, left, down and right."""

MOST_PITCH_STEPS: int = int(DEFAULT_PITCH_LIMIT_DEG // DEFAULT_ROTATION_SPEED_DEG)
"""Frames of looking up or down from level to the limit."""


def action_space() -> CameraOrKeysActionSpace:
    """A name of keys, or a pose, for each frame."""
    return CameraOrKeysActionSpace(unit="metres, as the model estimates them", keys=KEYS)


def action_string(names: Sequence[str]) -> str:
    """Names of keys, one a frame, in the pipeline's notation: ``w, w, jw`` is ``w-2,jw-1``."""
    return ",".join(f"{name}-{len(list(same))}" for name, same in groupby(names))


def trajectory(start: NDArray[np.float64], actions: Sequence[Any]) -> NDArray[np.float64]:
    """Where the camera is: in the chunk's first frame, which is known, and after each action.

    Args:
        start: pose ``[4, 4]`` of the first frame.
        actions: F poses, or F names of keys, as the action space parses them. Keys go on from ``start`` with
            the pitch that it has, so that the limit of looking up and down holds across chunks.

    Returns:
        ``[F + 1, 4, 4]``.
    """
    if not isinstance(actions[0], str):
        return np.stack([start, *(np.asarray(pose, np.float64) for pose in actions)])
    pitch = _pitch_steps(start)
    lead = ("i" if pitch > 0 else "k",) * abs(
        pitch
    )  # looks up or down on the spot, as far as the camera does
    poses = action_string_to_c2w(action_string((*lead, *actions)))[len(lead) :].astype(np.float64)
    placed: NDArray[np.float64] = start @ np.linalg.inv(poses[0]) @ poses
    return placed


def intrinsics(fov: float, height: int, width: int) -> NDArray[np.float32]:
    """``[fx, fy, cx, cy]`` in pixels, of square pixels and a centred axis.

    Args:
        fov: horizontal angle of view in degrees, above 0 and below 180.
    """
    focal = width / 2 / math.tan(math.radians(fov) / 2)
    return np.array([focal, focal, width / 2, height / 2], np.float32)


def _pitch_steps(pose: NDArray[np.float64]) -> int:
    """How many frames of looking up (down, if negative) lead from level to where ``pose`` looks."""
    pitch = math.degrees(math.asin(max(-1.0, min(1.0, -float(pose[1, 2])))))
    steps = round(pitch / DEFAULT_ROTATION_SPEED_DEG)
    limited: int = max(-MOST_PITCH_STEPS, min(MOST_PITCH_STEPS, steps))
    return limited
