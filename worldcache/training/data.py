"""Turns collected episodes into training batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from worldcache.training.collect import DEPTH_QUANTILE, Episode


@dataclass(frozen=True)
class Batch:
    """Windows of play: frames scaled to [-1, 1], channels first.

    Attributes:
        context: ``[B, 4, context, H, W]``.
        chunk: ``[B, 4, chunk, H, W]``.
        actions: int64 ``[B, context + chunk]``; entry ``i`` led to frame ``i``.
    """

    context: Tensor
    chunk: Tensor
    actions: Tensor


def depth_scale(episodes: Sequence[Episode]) -> float:
    """The depth value that becomes 1: a high quantile of every tenth frame."""
    depth = np.concatenate([e.frames[::10, ..., 3].ravel() for e in episodes])
    return float(np.quantile(depth, DEPTH_QUANTILE))


def scale_frames(frames: Tensor, depth_max: float) -> Tensor:
    """uint8 ``[B, T, H, W, 4]`` to float32 ``[B, 4, T, H, W]`` in [-1, 1]."""
    limits = torch.tensor([255.0, 255.0, 255.0, depth_max])
    return (frames / limits * 2 - 1).clamp(-1, 1).permute(0, 4, 1, 2, 3).contiguous()


class WindowDataset:
    """Every window of ``context + chunk`` frames of a set of episodes, held in memory as uint8."""

    def __init__(self, episodes: Sequence[Episode], context: int, chunk: int, depth_max: float) -> None:
        self.context, self.chunk, self.depth_max = context, chunk, depth_max
        self.frames = torch.from_numpy(np.concatenate([e.frames for e in episodes]))
        self.actions = torch.from_numpy(np.concatenate([e.actions for e in episodes])).long()
        window = context + chunk
        starts, offset = [], 0
        for episode in episodes:
            starts.append(np.arange(offset, offset + len(episode.frames) - window + 1))
            offset += len(episode.frames)
        self.starts = torch.from_numpy(np.concatenate(starts))

    def __len__(self) -> int:
        return len(self.starts)

    def batch(self, indices: Tensor) -> Batch:
        """The windows with these indices."""
        rows = self.starts[indices][:, None] + torch.arange(self.context + self.chunk)
        frames = scale_frames(self.frames[rows], self.depth_max)
        context, chunk = frames.split([self.context, self.chunk], dim=2)
        return Batch(context, chunk, self.actions[rows])

    def sample(self, size: int, generator: torch.Generator) -> Batch:
        """``size`` windows drawn uniformly."""
        return self.batch(torch.randint(len(self), (size,), generator=generator))
