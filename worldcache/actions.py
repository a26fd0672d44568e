"""Action spaces: what a model can be told to do in one frame. Plain data; nothing here imports torch."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from worldcache.errors import InvalidInput, UnknownName

Pose: TypeAlias = tuple[tuple[float, float, float, float], ...]
"""A camera-to-world matrix: four rows of four numbers."""

ORTHONORMAL = 1e-2
"""How far the rotation of a pose may be from one, by element."""

MOST_POSE = 1e6
"""Largest number in a pose; nothing in a scene is farther away than that."""

NO_KEY = "none"
"""The action of a frame in which no key is held."""


ROUNDING = 2.0**-23
"""How far a number may exceed a bound, relative to it, as it may have been rounded to float32."""


class ActionSpace(ABC):
    """What a model can be told to do in one frame."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """The space as JSON data, with its ``type``."""

    @abstractmethod
    def parse(self, actions: Sequence[object], *, param: str = "actions") -> tuple[Any, ...]:
        """Actions in the model's own form.

        Raises:
            InvalidInput: an action is outside the space; ``param`` names the entry.
        """


@dataclass(frozen=True)
class DiscreteActionSpace(ActionSpace):
    """One of ``names`` a frame, given by name or by index."""

    names: tuple[str, ...]

    def describe(self) -> dict[str, Any]:
        return {"type": "discrete", "names": list(self.names)}

    def parse(self, actions: Sequence[object], *, param: str = "actions") -> tuple[int, ...]:
        return tuple(self._index(action, f"{param}.{i}") for i, action in enumerate(actions))

    def _index(self, action: object, param: str) -> int:
        if isinstance(action, str):
            if action not in self.names:
                raise UnknownName("action", action, self.names, param=param)
            return self.names.index(action)
        if isinstance(action, int) and not isinstance(action, bool):
            if not 0 <= action < len(self.names):
                raise InvalidInput(
                    f"action index {action} is outside 0 to {len(self.names) - 1}", param=param
                )
            return action
        raise InvalidInput(
            f"an action is a name ({', '.join(self.names)}) or an index, not {type(action).__name__}",
            param=param,
        )


@dataclass(frozen=True)
class BoxActionSpace(ActionSpace):
    """A vector a frame, each of whose numbers lies between two bounds, as a robot's joints or wheels.

    A number that exceeds its bound by the rounding of float32 alone becomes the bound.

    Attributes:
        low, high: bounds of each number, in the unit that the model's description gives.
        names: what each number is.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if not len(self.low) == len(self.high) == len(self.names) > 0:
            raise ValueError("low, high and names must have an entry for each number of the vector")
        if not all(low <= high for low, high in zip(self.low, self.high, strict=True)):
            raise ValueError("low must not be above high")

    def describe(self) -> dict[str, Any]:
        return {
            "type": "box",
            "shape": [len(self.names)],
            "low": list(self.low),
            "high": list(self.high),
            "names": list(self.names),
        }

    def parse(self, actions: Sequence[object], *, param: str = "actions") -> tuple[tuple[float, ...], ...]:
        return tuple(self._vector(action, f"{param}.{i}") for i, action in enumerate(actions))

    def _vector(self, action: object, param: str) -> tuple[float, ...]:
        numbers = _numbers(action, len(self.names))
        if numbers is None:
            raise InvalidInput(
                f"an action is {len(self.names)} numbers: {', '.join(self.names)}", param=param
            )
        for name, number, low, high in zip(self.names, numbers, self.low, self.high, strict=True):
            if not low - abs(low) * ROUNDING <= number <= high + abs(high) * ROUNDING:
                raise InvalidInput(f"{name} must be {low:g} to {high:g}, not {number:g}", param=param)
        return tuple(map(_clamp, numbers, self.low, self.high))


@dataclass(frozen=True)
class CameraPoseActionSpace(ActionSpace):
    """Where the camera is in a frame: a camera-to-world matrix, in the coordinates of its own choice.

    Axes are OpenCV's: x to the right, y down, z forward. ``null`` in every frame leaves the camera to the
    model, if it can do without.

    Attributes:
        unit: what a translation of 1 means.
        optional: whether the camera may be left to the model.
    """

    unit: str
    optional: bool = False

    def describe(self) -> dict[str, Any]:
        return {
            "type": "camera_pose",
            "shape": [4, 4],
            "convention": "camera-to-world; x right, y down, z forward",
            "unit": self.unit,
            "optional": self.optional,
        }

    def parse(self, actions: Sequence[object], *, param: str = "actions") -> tuple[Pose | None, ...]:
        missing = [action is None for action in actions]
        if self.optional and all(missing):
            return (None,) * len(actions)
        return tuple(self._pose(action, f"{param}.{i}") for i, action in enumerate(actions))

    def _pose(self, action: object, param: str) -> Pose:
        rows = action if isinstance(action, Sequence) and not isinstance(action, str) else ()
        matrix = [_numbers(row, 4) for row in rows]
        if len(matrix) != 4 or not all(matrix):
            raise InvalidInput("an action is a 4x4 camera-to-world matrix, row by row", param=param)
        pose = tuple(row for row in matrix if row is not None)
        if max(abs(number) for row in pose for number in row) > MOST_POSE:
            raise InvalidInput(f"no number of a pose may exceed {MOST_POSE:g}", param=param)
        if pose[3] != (0.0, 0.0, 0.0, 1.0):
            raise InvalidInput("the last row of a pose is 0, 0, 0, 1", param=param)
        if not _is_rotation([row[:3] for row in pose[:3]]):
            raise InvalidInput("the upper left 3x3 numbers of a pose must be a rotation", param=param)
        return tuple((row[0], row[1], row[2], row[3]) for row in pose)


@dataclass(frozen=True)
class CameraOrKeysActionSpace(CameraPoseActionSpace):
    """Which keys are held in a frame, or where the camera is; all actions of a request are of one kind.

    Keys are given as one name: their letters, in any order, as ``w`` or ``jw``; ``none`` stands for no key.
    Poses are in the coordinates of the observation's camera.

    Attributes:
        keys: the letters that there are.
    """

    keys: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.keys or any(len(key) != 1 for key in self.keys):
            raise ValueError("keys must be single letters, at least one")

    def describe(self) -> dict[str, Any]:
        return {
            **super().describe(),
            "type": "camera_or_keys",
            "keys": list(self.keys),
            "no_key": NO_KEY,
            "origin": "the observation's camera",
        }

    def parse(self, actions: Sequence[object], *, param: str = "actions") -> tuple[Any, ...]:
        """Poses, or names of keys whose letters are sorted and differ."""
        by_keys = bool(actions) and isinstance(actions[0], str)
        for i, action in enumerate(actions):
            if isinstance(action, str) != by_keys:
                raise InvalidInput(
                    "the actions of a request are all names of keys, or all poses", param=f"{param}.{i}"
                )
        if not by_keys:
            return super().parse(actions, param=param)
        return tuple(self._name(str(action), f"{param}.{i}") for i, action in enumerate(actions))

    def _name(self, action: str, param: str) -> str:
        if action == NO_KEY:
            return action
        unknown = sorted(set(action) - set(self.keys))
        if unknown or not action:
            told = f"there is no key {unknown[0]!r}" if unknown else "an action without a letter"
            raise InvalidInput(
                f"{told}: name the keys that are held, of {', '.join(self.keys)}, or {NO_KEY!r}",
                param=param,
                code="unknown_action",
            )
        return "".join(sorted(set(action)))


def _numbers(value: object, count: int) -> tuple[float, ...] | None:
    """So many finite numbers, or ``None``."""
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != count:
        return None
    if any(not isinstance(part, int | float) or isinstance(part, bool) for part in value):
        return None
    try:
        numbers = tuple(float(part) for part in value)
    except OverflowError:  # an integer of hundreds of digits
        return None
    return numbers if all(map(math.isfinite, numbers)) else None


def _clamp(number: float, low: float, high: float) -> float:
    return min(max(number, low), high)


def _is_rotation(rows: Sequence[Sequence[float]]) -> bool:
    """Whether three rows are orthonormal and right-handed."""
    for i, first in enumerate(rows):
        for j, second in enumerate(rows):
            product = sum(a * b for a, b in zip(first, second, strict=True))
            if abs(product - (i == j)) > ORTHONORMAL:
                return False
    (a, b, c), (d, e, f), (g, h, i_) = rows
    return a * (e * i_ - f * h) - b * (d * i_ - f * g) + c * (d * h - e * g) > 0
