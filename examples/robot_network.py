"""The network of ``robot_world.py``: it stands for one that you have trained.

Nothing is trained here: it is told where the robot is in each frame and draws what it expects to see, by a
camera with some grain. It is a denoiser all the same: it expects the grain that the noisy latent suggests,
and outlines are the blurrier the noisier it is. So its velocity changes from step to step, not linearly, as a
trained network's does, and what a cache predicts is close to it and not equal.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

SIZE = 64
"""Pixels of a side."""

ARENA, BODY, MARK, MARK_AHEAD = 3.2, 0.3, 0.12, 0.17
"""Metres: a side of the arena, the radii of the robot and of the mark on it, and between their centres."""

EDGE, BLUR = 0.03, 0.2
"""Metres: how wide an edge is without noise, and what pure noise adds to it."""

GRAIN = 0.04
"""Standard deviation of the camera's grain, by pixel and colour."""

COLOURS = ((0.86, 0.84, 0.76), (-0.8, -0.3, 0.6), (0.9, -0.8, -0.7))
"""Floor, body and mark: red, green and blue from -1 to 1."""


class RobotNetwork(nn.Module):
    """Predicts the velocity of a noisy chunk.

    A pose is metres to the right of the arena's centre, metres up, and the heading in radians, 0 to the right
    and rising to the left.
    """

    pixels: Tensor
    colours: Tensor

    def __init__(self) -> None:
        super().__init__()
        along = ((torch.arange(SIZE) + 0.5) / SIZE - 0.5) * ARENA
        self.register_buffer("pixels", torch.stack(torch.meshgrid(along, -along, indexing="xy"), -1))
        self.register_buffer("colours", torch.tensor(COLOURS))

    def forward(self, noisy: Tensor, timesteps: Tensor, poses: Tensor) -> Tensor:
        """``noise - x0``, which is ``(x - x0) / sigma`` as ``x = (1 - sigma) x0 + sigma noise``.

        Args:
            noisy: latents x ``[B, 3, F, H, W]``, colours from -1 to 1 under noise.
            timesteps: ``[B]``, 1000 sigma.
            poses: ``[B, F, 3]``, where the robot is.
        """
        sigma = timesteps.view(-1, 1, 1, 1, 1) / 1000
        drawn, signal = self.draw(poses, sigma), 1 - sigma
        gain = GRAIN**2 * signal / ((GRAIN * signal) ** 2 + sigma**2)
        clean = drawn + gain * (noisy - signal * drawn)  # the mean of all x0 that may have led to x
        return (noisy - clean) / sigma

    def draw(self, poses: Tensor, sigma: Tensor) -> Tensor:
        """The chunk without grain, as well as it can be told at a noise level ``[B, 1, 1, 1, 1]``."""
        edge = EDGE + BLUR * sigma.flatten(3)
        ahead = torch.stack([poses[..., 2].cos(), poses[..., 2].sin()], -1)
        body = self._disc(poses[..., :2], BODY, edge)
        mark = self._disc(poses[..., :2] + MARK_AHEAD * ahead, MARK, edge)
        shares = torch.stack([1 - body, body * (1 - mark), body * mark], -1)
        return (shares @ self.colours).permute(0, 4, 1, 2, 3)

    def locate(self, picture: Tensor) -> Tensor:
        """The pose ``[3]`` of the robot in ``[3, H, W]``, from -1 to 1; not finite if there is no robot."""
        shares = picture.permute(1, 2, 0) @ self.colours.inverse()
        weights = (torch.stack([1 - shares[..., 0], shares[..., 2]]) - 0.5).clamp(min=0)[..., None]
        robot, mark = (self.pixels * weights).sum((1, 2)) / weights.sum((1, 2))
        right, up = mark - robot
        return torch.cat([robot, torch.atan2(up, right)[None]])

    def _disc(self, centres: Tensor, radius: float, edge: Tensor) -> Tensor:
        """How much of each pixel ``[B, F, H, W]`` discs around ``[B, F, 2]`` cover."""
        distance = (self.pixels - centres[..., None, None, :]).norm(dim=-1)
        return torch.sigmoid((radius - distance) / edge)
