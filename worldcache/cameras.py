"""Camera paths by name, as plain numbers: what a client may ask for instead of a list of poses.

The straight paths and the turns are those of HunyuanWorld-Voyager's published input tool. Nothing here
imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

from worldcache.actions import MOST_POSE, Pose
from worldcache.errors import InvalidInput, UnknownName

DISTANCE = 1.0
"""How far a straight path leads, and the radius of an orbit, unless it is said; in the model's unit."""

ORBIT_ANGLE = 45.0
"""How far round an orbit leads unless it is said, in degrees."""

MOST_ANGLE = 360.0
"""Largest angle of a path in degrees."""

MOST_FRAMES = 100_000
"""Longest path."""

_STRAIGHT: Mapping[str, tuple[float, float]] = MappingProxyType(
    {"forward": (0.0, 1.0), "backward": (0.0, -1.0), "left": (-1.0, 0.0), "right": (1.0, 0.0)}
)
"""Directions of movement, to the right and ahead."""

_TURNS: Mapping[str, float] = MappingProxyType({"turn_left": 1.0, "turn_right": -1.0})
_ORBITS: Mapping[str, float] = MappingProxyType({"orbit_left": 1.0, "orbit_right": -1.0})

TRAJECTORIES: tuple[str, ...] = (*_STRAIGHT, *_TURNS, *_ORBITS)
"""The names of the paths."""


def trajectory(
    name: str, frames: int, *, distance: float | None = None, angle: float | None = None
) -> tuple[Pose, ...]:
    """The poses of ``frames`` frames after the observed one, whose own pose is the identity.

    A pose is a camera-to-world matrix; x points to the right, y down, z forward. The last frame is at the
    end of the path.

    - ``forward``, ``backward``, ``left``, ``right``: even steps on a straight line; the camera keeps looking
      ahead.
    - ``turn_left``, ``turn_right``: the camera turns where it stands. Without an angle the point that it
      looks at moves evenly on a straight line, as published: frame i of N, the observed one counted, is
      turned by atan(i / (2N - 1 - i)), a little less than 45 degrees at the end. With one, by even angles.
    - ``orbit_left``, ``orbit_right``: the camera moves to that side by even angles on a circle round the
      point straight ahead, in the horizontal plane, and keeps looking at that point.

    Args:
        name: one of :data:`TRAJECTORIES`.
        frames: at least 1.
        distance: length of a straight path or radius of an orbit, in the model's unit; 1 if left out.
        angle: of a whole turn or orbit in degrees; of an orbit 45 if left out.

    Raises:
        InvalidInput: a value cannot be used, or means nothing for this path; ``param`` is
            the field of ``conditioning.camera`` that holds it.
    """
    if name not in TRAJECTORIES:
        raise UnknownName("trajectory", name, TRAJECTORIES, param="conditioning.camera.trajectory")
    if isinstance(frames, bool) or not isinstance(frames, int) or not 1 <= frames <= MOST_FRAMES:
        raise _invalid("frames", f"frames must be a whole number from 1 to {MOST_FRAMES}")
    if distance is not None:
        if name in _TURNS:
            raise _invalid("distance", f"{name} moves the camera by no distance; leave it out")
        _check("distance", distance, MOST_POSE / 2)  # an orbit is two radii wide
    if angle is not None:
        if name in _STRAIGHT:
            raise _invalid("angle", f"{name} turns the camera by no angle; leave it out")
        _check("angle", angle, MOST_ANGLE)
    pose = _path(name, frames, DISTANCE if distance is None else float(distance), angle)
    return tuple(pose(i) for i in range(1, frames + 1))


def _path(name: str, frames: int, distance: float, angle: float | None) -> Callable[[int], Pose]:
    """The pose of each frame; that of frame 0 would be the identity."""
    if name in _STRAIGHT:
        right, ahead = _STRAIGHT[name]
        return lambda i: _pose(0.0, right * distance * i / frames, ahead * distance * i / frames)
    if name in _TURNS:
        side = _TURNS[name]
        if angle is None:
            return lambda i: _looking_at(side * i, 2 * frames + 1 - i, 2 * frames + 1)
        whole = math.radians(angle)
        return lambda i: _pose(side * whole * i / frames, 0.0, 0.0)
    side, whole = _ORBITS[name], math.radians(ORBIT_ANGLE if angle is None else angle)
    return lambda i: _on_orbit(side * whole * i / frames, distance)


def _looking_at(left: float, ahead: float, whole: float) -> Pose:
    """A camera that looks at a point so far to the left and ahead, of a path that is ``whole`` long.

    In the published numbers, a path of 100 units: pixels are rounded to one side or the other by their
    last digit.
    """
    right, forward = left / whole * -100, (whole - ahead) / whole * -100 + 100
    length = math.sqrt(right * right + forward * forward)
    sine, cosine = -right / length, forward / length
    return (
        (cosine, 0.0, -sine, 0.0),
        (0.0, 1.0, 0.0, 0.0),
        (sine, 0.0, cosine, 0.0),
        (0.0, 0.0, 0.0, 1.0),
    )


def _on_orbit(angle: float, radius: float) -> Pose:
    """So far to the left on a circle round the point ``radius`` ahead, and looking at it."""
    return _pose(-angle, -radius * math.sin(angle), radius * (1 - math.cos(angle)))


def _pose(left: float, right: float, ahead: float) -> Pose:
    """A camera that is turned to the left by an angle in radians and has moved."""
    cosine, sine = math.cos(left), math.sin(left)
    return (
        (cosine, 0.0, -sine, right),
        (0.0, 1.0, 0.0, 0.0),
        (sine, 0.0, cosine, ahead),
        (0.0, 0.0, 0.0, 1.0),
    )


def _check(argument: str, value: float, most: float) -> None:
    """Refuse what is no number above 0 and at most ``most``."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value <= most:  # false for a NaN as well
        raise _invalid(argument, f"{argument} must be a number above 0 and at most {most:g}")


def _invalid(argument: str, message: str) -> InvalidInput:
    return InvalidInput(message, param=f"conditioning.camera.{argument}")
