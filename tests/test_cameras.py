"""Named camera paths, against the published ones and against geometry."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.models.voyager.golden import read
from worldcache.actions import CameraPoseActionSpace
from worldcache.cameras import TRAJECTORIES, trajectory
from worldcache.errors import InvalidInput

PUBLISHED = ("forward", "backward", "left", "right", "turn_left", "turn_right")
NAMES = (*PUBLISHED, "orbit_left", "orbit_right")


def path(name: str, frames: int, **options: float) -> NDArray[np.float64]:
    return np.array(trajectory(name, frames, **options))


def degrees_left(pose: NDArray[np.float64]) -> float:
    """How far the camera looks to the left of straight ahead."""
    return math.degrees(math.atan2(-pose[0, 2], pose[2, 2]))


def test_the_names() -> None:
    assert TRAJECTORIES == NAMES


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_paths_are_the_published_ones(name: str) -> None:
    tensors, metadata = read("voyager_condition", "np")
    published = np.linalg.inv(tensors[f"{name}.w2c"])
    assert len(published) == int(metadata["N"])
    np.testing.assert_allclose(published[0], np.eye(4), atol=1e-12)
    np.testing.assert_allclose(path(name, len(published) - 1), published[1:], atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("frames", [1, 2, 48])
def test_every_path_is_an_action_for_each_frame(name: str, frames: int) -> None:
    poses = trajectory(name, frames)
    assert CameraPoseActionSpace("units").parse(poses) == poses
    assert len(poses) == frames


def test_distance_scales_a_straight_path() -> None:
    np.testing.assert_allclose(path("left", 4, distance=2.0)[:, 0, 3], [-0.5, -1.0, -1.5, -2.0])
    np.testing.assert_allclose(path("backward", 2, distance=3)[:, 2, 3], [-1.5, -3.0])


def test_an_angle_makes_a_turn_even() -> None:
    assert [degrees_left(p) for p in path("turn_left", 4, angle=60)] == pytest.approx([15, 30, 45, 60])
    assert [degrees_left(p) for p in path("turn_right", 3, angle=90)] == pytest.approx([-30, -60, -90])


def test_a_turn_stays_where_it_is() -> None:
    assert not path("turn_left", 5)[:, :3, 3].any()


@pytest.mark.parametrize(("name", "side"), [("orbit_left", -1), ("orbit_right", 1)])
def test_an_orbit_goes_round_the_point_ahead(name: str, side: int) -> None:
    poses, centre = path(name, 6, distance=2.5, angle=90), np.array([0.0, 0.0, 2.5])
    np.testing.assert_allclose(np.linalg.norm(poses[:, :3, 3] - centre, axis=1), 2.5)
    np.testing.assert_allclose(poses[:, :3, 3] + 2.5 * poses[:, :3, 2], np.tile(centre, (6, 1)), atol=1e-12)
    np.testing.assert_allclose(poses[-1, :3, 3], [side * 2.5, 0.0, 2.5], atol=1e-12)
    assert [degrees_left(p) for p in poses] == pytest.approx([15 * side * n for n in range(1, 7)])


def test_an_orbit_is_45_degrees_with_a_radius_of_1_by_default() -> None:
    np.testing.assert_allclose(path("orbit_right", 3), path("orbit_right", 3, distance=1, angle=45))


@pytest.mark.parametrize(
    ("name", "frames", "options", "field"),
    [
        ("up", 4, {}, "trajectory"),
        ("left", 0, {}, "frames"),
        ("left", True, {}, "frames"),
        ("left", 2.5, {}, "frames"),
        ("left", 10**9, {}, "frames"),
        ("left", 4, {"distance": 0}, "distance"),
        ("left", 4, {"distance": -1.0}, "distance"),
        ("left", 4, {"distance": math.nan}, "distance"),
        ("left", 4, {"distance": math.inf}, "distance"),
        ("left", 4, {"distance": "far"}, "distance"),
        ("left", 4, {"angle": 30}, "angle"),
        ("turn_left", 4, {"distance": 1}, "distance"),
        ("turn_left", 4, {"angle": 0}, "angle"),
        ("orbit_left", 4, {"angle": 361}, "angle"),
        ("orbit_left", 4, {"angle": True}, "angle"),
    ],
)
def test_what_cannot_be_used_is_named(name: str, frames: int, options: dict, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        trajectory(name, frames, **options)
    assert caught.value.param == f"conditioning.camera.{field}"
