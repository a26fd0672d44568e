"""Action spaces: what they say of themselves, what they take, and which entry they refuse."""

from __future__ import annotations

from typing import Any

import pytest

from worldcache.actions import (
    ActionSpace,
    BoxActionSpace,
    CameraOrKeysActionSpace,
    CameraPoseActionSpace,
    DiscreteActionSpace,
)
from worldcache.errors import InvalidInput

DISCRETE = DiscreteActionSpace(("NOOP", "LEFT"))
BOX = BoxActionSpace((-1.0, 0.0), (1.0, 2.0), ("wheel", "gas"))
CAMERA = CameraPoseActionSpace("metres")
FREE_CAMERA = CameraPoseActionSpace("metres", optional=True)
EITHER = CameraOrKeysActionSpace("metres", keys=("w", "a", "j"))

STILL = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
TURNED = [[0, 0, 1, 5], [0, 1, 0, -2], [-1, 0, 0, 0.5], [0, 0, 0, 1]]
MIRRORED = [[-1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
SCALED = [[2, 0, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]]


def test_spaces_describe_themselves() -> None:
    assert DISCRETE.describe() == {"type": "discrete", "names": ["NOOP", "LEFT"]}
    assert BOX.describe() == {
        "type": "box",
        "shape": [2],
        "low": [-1.0, 0.0],
        "high": [1.0, 2.0],
        "names": ["wheel", "gas"],
    }
    camera = {
        "type": "camera_pose",
        "shape": [4, 4],
        "convention": "camera-to-world; x right, y down, z forward",
        "unit": "metres",
        "optional": False,
    }
    assert CAMERA.describe() == camera
    assert FREE_CAMERA.describe() == {**camera, "optional": True}
    assert EITHER.describe() == {
        **camera,
        "type": "camera_or_keys",
        "keys": ["w", "a", "j"],
        "no_key": "none",
        "origin": "the observation's camera",
    }


def test_a_box_takes_vectors_up_to_its_bounds() -> None:
    assert BOX.parse([[0, 1], (-1.0, 2.0)]) == ((0.0, 1.0), (-1.0, 2.0))


def test_a_camera_takes_poses() -> None:
    still, turned = CAMERA.parse([STILL, TURNED])
    assert still == ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
    assert turned is not None and [row[3] for row in turned] == [5.0, -2.0, 0.5, 1.0]


def test_a_camera_may_be_left_to_the_model_as_a_whole() -> None:
    assert FREE_CAMERA.parse([None, None]) == (None, None)
    assert FREE_CAMERA.parse([STILL])[0] is not None


def test_keys_come_in_any_order_and_count_once() -> None:
    assert EITHER.parse(["w", "wj", "jw", "jjw", "none"]) == ("w", "jw", "jw", "jw", "none")


def test_where_keys_are_poses_will_do_as_well() -> None:
    assert EITHER.parse([STILL, TURNED]) == CAMERA.parse([STILL, TURNED])


@pytest.mark.parametrize("space", [DISCRETE, BOX, CAMERA, FREE_CAMERA, EITHER])
def test_no_actions_are_no_actions(space: ActionSpace) -> None:
    assert space.parse([]) == ()


@pytest.mark.parametrize(
    ("space", "actions", "entry", "told"),
    [
        (DISCRETE, ["NOOP", "JUMP"], 1, "unknown action 'JUMP'"),
        (DISCRETE, [0, 2], 1, "outside 0 to 1"),
        (DISCRETE, [True], 0, "not bool"),
        (BOX, [[0, 1], [0]], 1, "2 numbers: wheel, gas"),
        (BOX, [[0, 1, 2]], 0, "2 numbers"),
        (BOX, ["01"], 0, "2 numbers"),
        (BOX, [3], 0, "2 numbers"),
        (BOX, [None], 0, "2 numbers"),
        (BOX, [[0, "1"]], 0, "2 numbers"),
        (BOX, [[0, True]], 0, "2 numbers"),
        (BOX, [[0, float("nan")]], 0, "2 numbers"),
        (BOX, [[0, float("inf")]], 0, "2 numbers"),
        (BOX, [[0, 10**400]], 0, "2 numbers"),
        (BOX, [[0, 1], [0, 1], [1.5, 1]], 2, "wheel must be -1 to 1"),
        (BOX, [[0, -0.1]], 0, "gas must be 0 to 2"),
        (CAMERA, [STILL, None], 1, "4x4"),
        (CAMERA, ["forward"], 0, "4x4"),
        (CAMERA, [STILL[:3]], 0, "4x4"),
        (CAMERA, [[*STILL[:3], [0, 0, 1]]], 0, "4x4"),
        (CAMERA, [[*STILL[:3], [0, 0, 0, float("nan")]]], 0, "4x4"),
        (CAMERA, [[*STILL[:3], "0001"]], 0, "4x4"),
        (CAMERA, [[[1, 0, 0, 2e6], *STILL[1:]]], 0, "exceed"),
        (CAMERA, [[*STILL[:3], [0, 0, 0, 2]]], 0, "last row"),
        (CAMERA, [STILL, STILL, MIRRORED], 2, "rotation"),
        (CAMERA, [SCALED], 0, "rotation"),
        (FREE_CAMERA, [None, STILL], 0, "4x4"),
        (EITHER, ["w", "jx"], 1, "no key 'x'"),
        (EITHER, ["W"], 0, "no key 'W'"),
        (EITHER, ["w", ""], 1, "without a letter"),
        (EITHER, ["w", STILL], 1, "all names of keys, or all poses"),
        (EITHER, [STILL, STILL, "w"], 2, "all names of keys, or all poses"),
        (EITHER, ["w", None], 1, "all names of keys, or all poses"),
        (EITHER, [None, None], 0, "4x4"),
        (EITHER, [STILL, MIRRORED], 1, "rotation"),
        (EITHER, [0], 0, "4x4"),
    ],
)
def test_a_refusal_names_the_entry(space: ActionSpace, actions: list[Any], entry: int, told: str) -> None:
    with pytest.raises(InvalidInput, match=told) as caught:
        space.parse(actions, param="body.actions")
    assert caught.value.param == f"body.actions.{entry}"


@pytest.mark.parametrize(
    "arguments",
    [
        ((), (), ()),
        ((0.0,), (1.0, 1.0), ("a",)),
        ((0.0,), (1.0,), ("a", "b")),
        ((2.0,), (1.0,), ("a",)),
    ],
)
def test_a_box_without_sense_cannot_be_made(arguments: tuple[Any, Any, Any]) -> None:
    with pytest.raises(ValueError):
        BoxActionSpace(*arguments)


@pytest.mark.parametrize("keys", [(), ("w", "up"), ("",)])
def test_keys_are_single_letters(keys: tuple[str, ...]) -> None:
    with pytest.raises(ValueError):
        CameraOrKeysActionSpace("metres", keys=keys)
