"""Keys and poses as trajectories."""

from __future__ import annotations

import math

import numpy as np
import pytest
from diffusers.pipelines.sana_wm.cam_utils import action_string_to_c2w

from tests.models.sana_wm.requests import KEYS, turning
from worldcache.models.sana_wm.camera import action_string, intrinsics, trajectory


def test_keys_are_written_as_the_pipeline_reads_them() -> None:
    assert action_string(("w", "w", "jw", "none", "none", "w")) == "w-2,jw-1,none-2,w-1"


def test_keys_lead_where_the_pipeline_says() -> None:
    expected = action_string_to_c2w("w-3,wj-4,none-2,kid-2,a-5")
    assert np.array_equal(trajectory(np.eye(4), KEYS).astype(np.float32), expected)


@pytest.mark.parametrize("first", [("iw",) * 20, ("kj",) * 7, ("il",) * 80, ("ijd",) * 10 + ("k",) * 15])
def test_keys_go_on_where_the_camera_was(first: tuple[str, ...]) -> None:
    """Also at the limit of looking up, which the first chunk may have reached: 70 frames of 1.2 degrees."""
    then = ("iw",) * 60 + ("dl",) * 5
    whole = trajectory(np.eye(4), first + then)
    parts = trajectory(trajectory(np.eye(4), first)[-1], then)
    np.testing.assert_allclose(parts, whole[len(first) :], atol=1e-5)


def test_poses_are_taken_as_they_are() -> None:
    start = np.array(turning(1)[0])
    path = trajectory(start, turning(3)[1:])
    assert np.array_equal(path, np.stack([np.array(pose) for pose in turning(3)]))


def test_keys_go_on_after_poses() -> None:
    start = np.array(turning(5)[-1])  # it turned right by 0.15 rad, and looks level
    ahead = start[:3, 3] + 0.05 * np.array([math.sin(0.15), 0.0, math.cos(0.15)])
    np.testing.assert_allclose(trajectory(start, ("w",))[1][:3, 3], ahead, atol=1e-6)


def test_the_angle_of_view_gives_the_focal_length() -> None:
    # half of 640 pixels are seen within 45 degrees, whose tangent is 1
    assert intrinsics(90.0, 480, 640) == pytest.approx([320.0, 320.0, 320.0, 240.0])
