"""Requests for the tiny model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.models.sana_wm.tiny import HEIGHT, WIDTH
from worldcache.actions import Pose
from worldcache.core import UNCONDITIONED, Conditioning, Observation
from worldcache.engine.rollout import RolloutRequest
from worldcache.policies.registry import make_policy

KEYS = ("w",) * 3 + ("jw",) * 4 + ("none",) * 2 + ("dik",) * 2 + ("a",) * 5


def picture(seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


def turning(frames: int) -> tuple[Pose, ...]:
    """A camera that turns right, rises and moves on, as poses after each of so many frames."""
    poses = []
    for i in range(1, frames + 1):
        c, s = math.cos(0.03 * i), math.sin(0.03 * i)
        poses.append(
            ((c, 0.0, s, 0.1 * i), (0.0, 1.0, 0.0, -0.02 * i), (-s, 0.0, c, 0.2 * i), (0.0, 0.0, 0.0, 1.0))
        )
    return tuple(poses)


def request(
    actions: Sequence[Any] = KEYS,
    *,
    policy: str = "none",
    seed: int = 1,
    steps: int = 4,
    guidance: float = 1.0,
    image: int = 0,
    conditioning: Conditioning = UNCONDITIONED,
    **parameters: Any,
) -> RolloutRequest:
    return RolloutRequest(
        Observation(frames=picture(image)[None]),
        tuple(actions),
        make_policy(policy, **parameters),
        seed,
        steps,
        guidance,
        conditioning=conditioning,
    )
