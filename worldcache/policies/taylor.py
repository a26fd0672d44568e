"""``taylor``: extrapolate the output by its finite differences between fixed FULL steps.

Source: TaylorSeer, arXiv 2503.06923, applied to the model's output instead of to its layers; the
schedule and the defaults are those of diffusers 0.42, ``hooks/taylorseer_cache.py``.
"""

from __future__ import annotations

from typing import ClassVar

from worldcache.policies.base import PolicyConfig
from worldcache.policies.differences import DifferenceConfig, DifferencePolicy, DifferenceState
from worldcache.policies.math import taylor_weights


class TaylorConfig(DifferenceConfig):
    """Parameters of ``taylor``."""


class TaylorPolicy(DifferencePolicy[TaylorConfig]):
    """Cached steps return ``sum_(i<=m) D_i k^i / i!``, of a lower order while fewer outputs are known."""

    name: ClassVar[str] = "taylor"
    description: ClassVar[str] = (
        "Extrapolates the output by its Taylor series between evenly spaced FULL steps."
    )
    source: ClassVar[str] = "TaylorSeer, arXiv 2503.06923, at the granularity of the model's output"
    config_type: ClassVar[type[PolicyConfig]] = TaylorConfig

    def weights(self, state: DifferenceState, step: int) -> tuple[float, ...]:
        return taylor_weights(len(state.differences), step - state.newest)[1:]
