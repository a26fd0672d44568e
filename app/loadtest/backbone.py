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

AROUND = 3
"""Calls of each size, before and after what a table is compared with."""


class BackboneMeter:
    """Times the calls of one model, again and again if need be: machines get faster and slower.

    Args:
        model: warm.
    """

    def __init__(self, model: WorldModel) -> None:
        self._model = model
        context = model.begin(Observation(start=model.info.starts[0]))
        action = model.info.action_space.parse([0])
        size, noise = model.info.chunk_frames, torch.Generator().manual_seed(0)
        self._condition = model.condition(context, action * size, noise)
        self._latent = model.initial_latent(self._condition, size, noise)

    @torch.inference_mode()
    def measure(
        self,
        sizes: Sequence[int],
        repeats: int,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> dict[int, float]:
        """Median seconds of a call by its rows.

        Every repeat measures all sizes, in random order, so that what else the machine does meets all alike.

        Args:
            sizes: rows of the calls.
            repeats: of each size, after one that is not counted.
            progress: told of calls done and in all.
        """
        most = max(sizes)
        rows = [Row(self._latent, TOP_TIMESTEP * (1 - i / most), self._condition) for i in range(most)]
        generator = random.Random(0)
        taken: dict[int, list[float]] = {size: [] for size in sizes}
        for repeat in range(repeats + 1):
            for index, size in enumerate(generator.sample(sizes, len(sizes))):
                began = time.perf_counter()
                self._model.evaluate(rows[:size]).flatten()[0].item()  # waits for a device of its own pace
                if repeat:
                    taken[size].append(time.perf_counter() - began)
                progress(repeat * len(sizes) + index + 1, (repeats + 1) * len(sizes))
        return {size: statistics.median(times) for size, times in taken.items()}
