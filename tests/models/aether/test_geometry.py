"""Cameras and ray maps: against recordings of the published functions, and by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.models.aether.golden import largest_difference, read
from worldcache.models.aether.geometry import (
    depth_from_disparity,
    focal_from_half_angles,
    intrinsics_from_focal,
    point_map,
    poses_from_raymap,
    raymap_from_poses,
    signed_expm1,
    signed_log1p,
    smooth_poses,
)

Geometry = tuple[dict[str, Tensor], tuple[int, int], float]


@pytest.fixture(scope="module")
def golden() -> Geometry:
    metadata, tensors = read("aether_geometry")
    return tensors, (int(metadata["H"]), int(metadata["W"])), float(metadata["dmax"])


def test_poses_become_the_published_ray_map(golden: Geometry) -> None:
    tensors, size, dmax = golden
    raymap = raymap_from_poses(tensors["pose"], tensors["K"], size, largest_disparity=dmax)
    assert largest_difference(raymap, tensors["raymap"]) <= 1e-5


def test_the_ray_map_gives_the_published_poses_back(golden: Geometry) -> None:
    tensors, size, _ = golden
    poses, across, down = poses_from_raymap(tensors["raymap"])
    assert largest_difference(poses.double(), tensors["poses_out"]) <= 1e-5
    assert largest_difference(across, tensors["fov_x"]) <= 1e-5
    assert largest_difference(down, tensors["fov_y"]) <= 1e-5
    intrinsics = intrinsics_from_focal(focal_from_half_angles(across, down, size), size)
    torch.testing.assert_close(intrinsics.double(), tensors["intrinsics"], rtol=1e-5, atol=1e-4)


def test_points_are_the_published_ones(golden: Geometry) -> None:
    tensors, size, _ = golden
    poses, across, down = poses_from_raymap(tensors["raymap"])
    depth = depth_from_disparity(tensors["disparity"])
    torch.testing.assert_close(depth, tensors["depth"], rtol=1e-5, atol=1e-5)
    points = point_map(depth, poses, focal_from_half_angles(across, down, size))
    torch.testing.assert_close(points, tensors["pointmap"], rtol=1e-4, atol=1e-4)


def test_smoothing_is_the_published_one(golden: Geometry) -> None:
    tensors, _, _ = golden
    assert largest_difference(smooth_poses(tensors["poses_out"]), tensors["smooth_gaussian"]) <= 1e-5


def test_poses_survive_a_ray_map() -> None:
    angle = torch.tensor([0.0, 0.3, 0.6])
    poses = torch.eye(4).repeat(3, 1, 1)
    poses[:, 0, 0] = poses[:, 2, 2] = angle.cos()
    poses[:, 0, 2], poses[:, 2, 0] = angle.sin(), -angle.sin()
    poses[:, :3, 3] = torch.tensor([[0.0, 0, 0], [1, -0.5, 2], [3, 0, -0.01]])
    size, focal = (32, 64), torch.full((3,), 40.0)
    raymap = raymap_from_poses(poses, intrinsics_from_focal(focal, size), size)
    # rays are counted from the corner of the pixels and the camera looks through the middle of the frame,
    # so the mean ray is half a pixel aside: the recovered camera is turned by that
    found, across, down = poses_from_raymap(raymap)
    torch.testing.assert_close(found[:, :3, 3], poses[:, :3, 3], rtol=1e-4, atol=1e-4)
    assert largest_difference(found, poses) <= math.atan(0.5 / 40) * 1.5
    torch.testing.assert_close(focal_from_half_angles(across, down, size), focal, rtol=1e-2, atol=0.0)


def test_the_first_camera_looks_straight_ahead() -> None:
    raymap = raymap_from_poses(
        torch.eye(4)[None], intrinsics_from_focal(torch.tensor([16.0]), (16, 32)), (16, 32)
    )
    assert raymap.shape == (1, 6, 2, 4)
    # cells' middles are 3.5, 11.5, 19.5, 27.5 pixels across; the frame's middle is 16, the focal length 16
    assert raymap[0, 0, 0].tolist() == [-12.5 / 16, -4.5 / 16, 3.5 / 16, 11.5 / 16]
    assert raymap[0, 1, :, 0].tolist() == [-4.5 / 16, 3.5 / 16]
    assert (raymap[0, 2] == 1).all()
    assert (raymap[0, 3:] == 0).all()


def test_positions_are_logarithms() -> None:
    values = torch.tensor([-3.0, 0.0, 0.5])
    assert signed_log1p(values).tolist() == pytest.approx([-math.log(4), 0.0, math.log(1.5)])
    torch.testing.assert_close(signed_expm1(signed_log1p(values)), values)


def test_depth_is_clipped() -> None:
    assert depth_from_disparity(torch.tensor([0.0, 0.5, 4.0])).tolist() == pytest.approx([1000.0, 2.0, 1.0])


def test_smoothing_leaves_a_still_camera_where_it_is() -> None:
    poses = torch.eye(4, dtype=torch.float64).repeat(6, 1, 1)
    poses[:, 0, 3] = 2.0
    torch.testing.assert_close(smooth_poses(poses), poses)
