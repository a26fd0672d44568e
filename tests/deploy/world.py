"""A world whose rollouts last long enough to be interrupted."""

from __future__ import annotations

from typing import Any

import torch

from tests.toy import ToyWorldModel

DELAY = 0.02


class SlowWorld(ToyWorldModel):
    """The toy, as a server loads it by its import path."""

    @classmethod
    def load(cls, path: object, *, device: torch.device, dtype: torch.dtype) -> SlowWorld:
        return cls(delay=DELAY)


class SecretiveWorld(SlowWorld):
    """The same without snapshots."""

    def export_context(self, context: Any) -> Any:
        raise self._keeps_no_contexts()
