"""Cameras, ray maps and points: pure functions of tensors, in the convention of the published code.

A ray map holds, for every cell of a frame (a latent pixel, 8x8 pixels), the direction of its ray in world
coordinates, not normalised (its length along the camera's axis is 1), and the camera's position ``t`` as
``sign(t) log(1 + |t|)`` with ``t`` in tenths of the scene's unit. Poses are camera-to-world, axes x right,
y down, z forward. Angles are in radians, and half of what the frame shows.

Source: ``aether/utils/postprocess_utils.py`` of OpenRobotLab/Aether.
"""

from __future__ import annotations

import torch
from torch import Tensor

CELL = 8
"""Pixels along a cell of the ray map."""

POSITION_SCALE = 10.0
"""By which positions are multiplied before their logarithm is taken; the weights were trained with it."""

MIN_DISPARITY = 1e-3
"""What disparities are clipped to before they become depths."""

TRUNCATE = 4.0
"""Standard deviations after which the smoothing kernel ends."""


def signed_log1p(values: Tensor) -> Tensor:
    """``sign(x) log(1 + |x|)``."""
    return values.sign() * values.abs().log1p()


def signed_expm1(values: Tensor) -> Tensor:
    """Inverse of :func:`signed_log1p`."""
    return values.sign() * values.abs().expm1()


def intrinsics_from_focal(focal: Tensor, size: tuple[int, int]) -> Tensor:
    """Camera matrices ``[F, 3, 3]`` from focal lengths ``[F]`` in pixels, for frames of ``size`` (H, W)."""
    height, width = size
    matrices = focal.new_zeros(len(focal), 3, 3)
    matrices[:, 0, 0] = matrices[:, 1, 1] = focal
    matrices[:, 0, 2], matrices[:, 1, 2], matrices[:, 2, 2] = width / 2, height / 2, 1.0
    return matrices


def focal_from_half_angles(across: Tensor, down: Tensor, size: tuple[int, int]) -> Tensor:
    """One focal length in pixels, the mean of what both half angles of view say."""
    height, width = size
    return (width / 2 / across.tan() + height / 2 / down.tan()) / 2


def raymap_from_poses(
    poses: Tensor,
    intrinsics: Tensor,
    size: tuple[int, int],
    *,
    largest_disparity: float = 1.0,
    cell: int = CELL,
) -> Tensor:
    """The ray map ``[F, 6, H / cell, W / cell]`` of a camera's path.

    Args:
        poses: ``[F, 4, 4]``, relative to the first frame's camera.
        intrinsics: ``[F, 3, 3]`` in pixels.
        size: height and width in pixels.
        largest_disparity: of the scene, in the inverse of the unit of the poses; 1 if positions are in
            distances to the scene's nearest point already.
        cell: pixels along a cell.
    """
    rows, columns = size[0] // cell, size[1] // cell
    middle = (cell - 1) / 2  # pixels are counted at their corners, and a cell stands for its middle
    across = torch.arange(columns, dtype=poses.dtype, device=poses.device) * cell + middle
    down = torch.arange(rows, dtype=poses.dtype, device=poses.device) * cell + middle
    x = (across - intrinsics[:, 0, 2, None]) / intrinsics[:, 0, 0, None]
    y = (down - intrinsics[:, 1, 2, None]) / intrinsics[:, 1, 1, None]
    x = x[:, None, :].expand(-1, rows, -1)
    y = y[:, :, None].expand(-1, -1, columns)
    directions = torch.einsum("fij,fjhw->fihw", poses[:, :3, :3], torch.stack([x, y, torch.ones_like(x)], 1))
    positions = signed_log1p(poses[:, :3, 3] * largest_disparity * POSITION_SCALE)
    return torch.cat([directions, positions[:, :, None, None].expand_as(directions)], dim=1)


def poses_from_raymap(
    raymap: Tensor, *, position_scale: float = POSITION_SCALE
) -> tuple[Tensor, Tensor, Tensor]:
    """The camera in every frame of a ray map.

    Args:
        raymap: ``[F, 6, h, w]``, at least two cells high and wide.
        position_scale: what positions were multiplied by.

    Returns:
        Poses ``[F, 4, 4]`` and the half angles of view ``[F]``, horizontal and vertical.
    """
    rays = raymap[:, :3]
    rows, columns = raymap.shape[-2:]
    position = (signed_expm1(raymap[:, 3:]) / position_scale).mean(dim=(2, 3))
    forward = rays.mean(dim=(2, 3))
    length = torch.linalg.vector_norm(forward, dim=-1)
    right = (rays[..., -1] - rays[..., 0]).mean(dim=-1)
    up = (rays[..., 0, :] - rays[..., -1, :]).mean(dim=-1)
    # the outermost rays pass through the middles of their cells, one cell less than the frame is wide
    width = _distance_across(right, forward) * columns / (columns - 1)
    height = _distance_across(up, forward) * rows / (rows - 1)
    down = torch.linalg.cross(forward, right)
    right = torch.linalg.cross(down, forward)
    axes = [axis / torch.linalg.vector_norm(axis, dim=-1, keepdim=True) for axis in (right, down, forward)]
    poses = torch.zeros(len(raymap), 4, 4, dtype=raymap.dtype, device=raymap.device)
    poses[:, :3] = torch.stack([*axes, position], dim=-1)
    poses[:, 3, 3] = 1.0
    return poses, (width / (2 * length)).atan(), (height / (2 * length)).atan()


def _distance_across(chord: Tensor, axis: Tensor) -> Tensor:
    distance: Tensor = torch.linalg.vector_norm(torch.linalg.cross(chord, axis), dim=-1)
    return distance


def depth_from_disparity(disparity: Tensor) -> Tensor:
    """``1 / d`` with ``d`` clipped to [1e-3, 1], so 1 to 1000."""
    return 1.0 / disparity.clamp(MIN_DISPARITY, 1.0)


def point_map(depth: Tensor, poses: Tensor, focal: Tensor) -> Tensor:
    """Where every pixel lies in the world, ``[F, H, W, 3]``.

    Args:
        depth: ``[F, H, W]`` along the camera's axis.
        poses: ``[F, 4, 4]``.
        focal: ``[F]`` in pixels.
    """
    height, width = depth.shape[1:]
    across = torch.arange(width, dtype=depth.dtype, device=depth.device) + 0.5 - width / 2
    down = torch.arange(height, dtype=depth.dtype, device=depth.device) + 0.5 - height / 2
    x = (across / focal[:, None])[:, None, :].expand_as(depth)
    y = (down / focal[:, None])[:, :, None].expand_as(depth)
    rays = torch.stack([x, y, torch.ones_like(x)], dim=-1)
    turned = torch.einsum("fij,fhwj->fhwi", poses[:, :3, :3], rays)
    return depth[..., None] * turned + poses[:, None, None, :3, 3]


def smooth_poses(poses: Tensor, window: int = 5) -> Tensor:
    """A camera's path, positions and quaternions smoothed in time by a Gaussian.

    Args:
        poses: ``[F, 4, 4]``.
        window: frames that hold almost all of the kernel, six standard deviations.
    """
    quaternions = _quaternions(poses[:, :3, :3])
    turned = (quaternions[1:] * quaternions[:-1]).sum(dim=-1, keepdim=True) < 0
    signs = torch.where(turned, -1.0, 1.0).to(poses.dtype).cumprod(dim=0)
    quaternions = torch.cat([quaternions[:1], quaternions[1:] * signs])
    smoothed = torch.zeros_like(poses)
    smoothed[:, :3, :3] = _rotations(_gaussian(quaternions, window / 6))
    smoothed[:, :3, 3] = _gaussian(poses[:, :3, 3], window / 6)
    smoothed[:, 3, 3] = 1.0
    return smoothed


def _gaussian(values: Tensor, sigma: float) -> Tensor:
    """``[F, n]`` filtered along F; the ends are repeated beyond themselves."""
    reach = int(TRUNCATE * sigma + 0.5)
    steps = torch.arange(-reach, reach + 1, dtype=values.dtype, device=values.device)
    kernel = (-0.5 * (steps / sigma) ** 2).exp()
    padded = torch.cat([values[:1].expand(reach, -1), values, values[-1:].expand(reach, -1)])
    return (padded.unfold(0, 2 * reach + 1, 1) * (kernel / kernel.sum())).sum(dim=-1)


def _quaternions(rotations: Tensor) -> Tensor:
    """``[F, 4]`` as (x, y, z, w), each up to its sign.

    The eigenvector of a symmetric matrix (Bar-Itzhack 2000), so that a rotation which is not quite one
    gives the nearest.
    """
    r = [[rotations[:, i, j] for j in range(3)] for i in range(3)]
    xy, xz, yz = r[0][1] + r[1][0], r[0][2] + r[2][0], r[1][2] + r[2][1]
    x, y, z = r[2][1] - r[1][2], r[0][2] - r[2][0], r[1][0] - r[0][1]
    rows = [
        [r[0][0] - r[1][1] - r[2][2], xy, xz, x],
        [xy, r[1][1] - r[0][0] - r[2][2], yz, y],
        [xz, yz, r[2][2] - r[0][0] - r[1][1], z],
        [x, y, z, r[0][0] + r[1][1] + r[2][2]],
    ]
    matrices = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)
    vectors: Tensor = torch.linalg.eigh(matrices)[1]
    return vectors[..., -1]


def _rotations(quaternions: Tensor) -> Tensor:
    """``[F, 3, 3]`` from quaternions of any length but 0."""
    unit = quaternions / torch.linalg.vector_norm(quaternions, dim=-1, keepdim=True)
    x, y, z, w = unit.unbind(dim=-1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)
