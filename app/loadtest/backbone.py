"""How long one backbone call takes for how many rows, in this process, without a server."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence

import torch

from worldcache.core import Observation
from worldcache.models.base import Row, WorldModel

SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32)
"""Rows of the calls that are measured: every batch of eight rollouts, and beyond."""

TOP_TIMESTEP = 1000.0


@torch.inference_mode()
def measure_backbone(
    model: WorldModel,
    sizes: Sequence[int] = SIZES,
    *,
    repeats: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[int, float]:
    """Median seconds of a call by its rows.

    Every repeat measures all sizes, in random order, so that what else the machine does meets all alike.

    Args:
        model: warm.
        sizes: rows of the calls.
        repeats: of each size, after one that is not counted.
        progress: told of calls done and in all.
    """
    context = model.begin(Observation(start=model.info.starts[0]))
    action = model.info.action_space.parse([0])
    size, noise = model.info.chunk_frames, torch.Generator().manual_seed(0)
    condition = model.condition(context, action * size, noise)
    latent = model.initial_latent(condition, size, noise)
    rows = [Row(latent, TOP_TIMESTEP * (1 - i / max(sizes)), condition) for i in range(max(sizes))]
    generator = random.Random(0)
    taken: dict[int, list[float]] = {size: [] for size in sizes}
    for repeat in range(repeats + 1):
        for index, size in enumerate(generator.sample(sizes, len(sizes))):
            began = time.perf_counter()
            model.evaluate(rows[:size]).flatten()[0].item()  # waits for a device that works on its own
            if repeat:
                taken[size].append(time.perf_counter() - began)
            progress(repeat * len(sizes) + index + 1, (repeats + 1) * len(sizes))
    return {size: statistics.median(times) for size, times in taken.items()}
