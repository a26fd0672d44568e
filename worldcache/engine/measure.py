"""How far predictions would have been off, measured where the truth is computed anyway."""

from __future__ import annotations

import math

from torch import Tensor

from worldcache.policies.state import Miss, TokenLayout


class PredictionErrors:
    """Sums squared errors and squared outputs per modality, on the device, until they are read."""

    def __init__(self, layout: TokenLayout) -> None:
        self._layout = layout
        self._sums: Tensor | None = None

    def add(self, miss: Miss) -> None:
        """Take one more prediction into account."""
        self._sums = miss.powers if self._sums is None else self._sums + miss.powers

    def read(self) -> dict[str, float | None]:
        """Relative root mean square error by modality; ``None`` before the first prediction.

        ``None`` as well where no relative error exists, as for an output of 0. Reads the device once.
        """
        names = self._layout.names
        if self._sums is None:
            return dict.fromkeys(names)
        return {
            name: _relative(error, power)
            for name, (error, power) in zip(names, self._sums.tolist(), strict=True)
        }


def _relative(error: float, power: float) -> float | None:
    if not math.isfinite(error) or (error and not power):
        return None
    return math.sqrt(error / power) if error else 0.0
