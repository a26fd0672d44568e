"""Which action was taken? A small classifier of real frames that judges generated ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from worldcache.training.collect import Episode

BEFORE = 4
"""Frames before the action that the classifier sees."""
AFTER = 4
"""Frames from the action on that it sees."""


class InverseDynamics(nn.Module):
    """Classifies the action that led to the middle of a window of RGB frames.

    ``[B, 8, H, W, 3]`` in [0, 1] to logits ``[B, actions]``.
    """

    def __init__(self, num_actions: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d((2 * (BEFORE + AFTER) - 1) * 3, 48, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(48, 64, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(64, 96, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            nn.LazyLinear(128),
            nn.SiLU(),
            nn.Linear(128, num_actions),
        )

    def forward(self, window: Tensor) -> Tensor:
        frames = window.permute(0, 1, 4, 2, 3)
        changes = (frames[:, 1:] - frames[:, :-1]) * 4
        logits: Tensor = self.layers(torch.cat([frames, changes], dim=1).flatten(1, 2))
        return logits


def windows(frames: NDArray[np.uint8], indices: Tensor) -> Tensor:
    """The window around each frame index, ``[len(indices), 8, H, W, 3]`` in [0, 1]."""
    rows = indices[:, None] + torch.arange(-BEFORE, AFTER)
    return torch.from_numpy(frames)[rows] / 255


def train_classifier(
    episodes: Sequence[Episode],
    num_actions: int,
    *,
    steps: int = 1200,
    batch_size: int = 64,
    seed: int = 0,
    progress: Callable[[int, float], None] | None = None,
) -> InverseDynamics:
    """Train on real frames; blurred and noisy copies keep it from judging by texture."""
    torch.manual_seed(seed)
    frames = np.concatenate([e.frames[..., :3] for e in episodes])
    actions = torch.from_numpy(np.concatenate([e.actions for e in episodes])).long()
    inside, offset = [], 0
    for episode in episodes:
        inside.append(torch.arange(offset + BEFORE, offset + len(episode.frames) - AFTER + 1))
        offset += len(episode.frames)
    valid = torch.cat(inside)
    model = InverseDynamics(num_actions)
    model(windows(frames, valid[:1]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for step in range(steps):
        chosen = valid[torch.randint(len(valid), (batch_size,))]
        window = degrade(windows(frames, chosen))
        loss = F.cross_entropy(model(window), actions[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if progress:
            progress(step + 1, float(loss.detach()))
    return model.eval()


def degrade(window: Tensor) -> Tensor:
    """Blur half of the windows, and add a little noise to all."""
    flat = window.flatten(0, 1).permute(0, 3, 1, 2)
    soft = F.avg_pool2d(F.pad(flat, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    blurred = torch.rand(len(window)).repeat_interleave(window.shape[1]) < 0.5
    mixed = torch.where(blurred[:, None, None, None], soft, flat)
    noisy: Tensor = (mixed + 0.03 * torch.randn_like(mixed)).permute(0, 2, 3, 1)
    return noisy.view(window.shape)


@torch.inference_mode()
def recognised(model: InverseDynamics, frames: NDArray[np.uint8], indices: Tensor) -> NDArray[np.int64]:
    """The action that the classifier sees at each frame index."""
    chosen: NDArray[np.int64] = model(windows(frames, indices)).argmax(-1).numpy()
    return chosen
