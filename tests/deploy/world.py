"""A world whose rollouts last long enough to be interrupted."""

from __future__ import annotations

import torch

from tests.toy import ToyWorldModel

DELAY = 0.02


class SlowWorld(ToyWorldModel):
    """The toy, as a server loads it by its import path."""

    @classmethod
    def load(cls, path: object, *, device: torch.device, dtype: torch.dtype) -> SlowWorld:
        return cls(delay=DELAY)
