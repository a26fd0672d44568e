"""Which models are measured at their real size, and at which steps. ``real_size.py`` measures them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import Any, TypeAlias, cast

import torch

from worldcache.models.base import WorldModel
from worldcache.policies.registry import AnyPolicy, make_policy

Make: TypeAlias = Callable[[torch.device, torch.dtype, int], WorldModel]
"""Makes a model's random weights, on a device in a dtype, from a seed."""


@dataclass(frozen=True)
class Pattern:
    """Which steps are FULL: the warmup, then every (streak + 1)-th, and the last.

    Attributes:
        name: where the numbers come from.
        warmup: first steps, all FULL.
        streak: cached steps between two FULL ones.
    """

    name: str
    warmup: int
    streak: int

    def policy(self) -> AnyPolicy:
        """What computes those steps and predicts the others."""
        return make_policy("worldcache", warmup_steps=self.warmup, max_skip=self.streak, trigger="interval")


@dataclass(frozen=True)
class Subject:
    """A model to measure.

    Attributes:
        make: its random weights, on a device in a dtype, from a seed.
        patterns: to run besides the uncached chunk.
        task: which of the model's tasks; its first one if ``None``.
        depth: whether the observation needs depth.
    """

    make: Make
    patterns: tuple[Pattern, ...]
    task: str | None = None
    depth: bool = False


def _random(module: str, name: str) -> Make:
    """Calls ``random`` of a class that is imported when it is first needed."""

    def make(device: torch.device, dtype: torch.dtype, seed: int) -> WorldModel:
        family: Any = getattr(import_module(module), name)
        return cast(WorldModel, family.random(device=device, dtype=dtype, seed=seed))

    return make


SUBJECTS: Mapping[str, Subject] = MappingProxyType(
    {
        "aether": Subject(
            _random("worldcache.models.aether.world", "AetherWorldModel"),
            (
                Pattern("published preset, longest streaks", warmup=10, streak=2),
                Pattern("as many FULL steps as the published speed-up of 1.68x needs", warmup=10, streak=1),
            ),
            task="prediction",
        ),
        "voyager": Subject(
            _random("worldcache.models.voyager.world", "VoyagerWorldModel"),
            (
                Pattern("published preset, longest streaks", warmup=5, streak=6),
                Pattern("as many FULL steps as the published speed-up of 3.65x needs", warmup=5, streak=4),
            ),
            depth=True,
        ),
    }
)
"""Patterns of 50 steps: 24 and 30 FULL for Aether (50/30 = 1.67), 12 and 14 for Voyager (50/14 = 3.57)."""
