"""``hicache``: extrapolate the output's finite differences by scaled Hermite polynomials.

Source: HiCache, arXiv 2508.16984, applied to the model's output instead of to its layers; the
schedule is that of ``taylor``.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from worldcache.policies.base import PolicyConfig
from worldcache.policies.differences import DifferenceConfig, DifferencePolicy, DifferenceState
from worldcache.policies.math import hermite_weights


class HiCacheConfig(DifferenceConfig):
    """Parameters of ``hicache``."""

    interval: int = Field(default=7, ge=1, description="Steps between FULL steps after the warmup (n).")
    order: int = Field(default=2, ge=1, le=3, description="Highest finite difference in the prediction (m).")
    sigma: float = Field(
        default=0.5, gt=0, le=1, description="Contracts the Hermite polynomials, argument and value alike."
    )


class HiCachePolicy(DifferencePolicy[HiCacheConfig]):
    """Cached steps return ``y0 + sum_(1<=i<=m) D_i / i! * sigma^i * H_i(sigma k)``.

    H_i are the physicists' Hermite polynomials: ``2x``, ``4x^2 - 2``, ``8x^3 - 12x``. From order two on
    the prediction does not begin at y0: ``H_2(0) = -2``. The order is lower while fewer outputs are known.
    """

    name: ClassVar[str] = "hicache"
    description: ClassVar[str] = (
        "Extrapolates the output by scaled Hermite polynomials between evenly spaced FULL steps."
    )
    source: ClassVar[str] = "HiCache, arXiv 2508.16984, at the granularity of the model's output"
    config_type: ClassVar[type[PolicyConfig]] = HiCacheConfig

    def weights(self, state: DifferenceState, step: int) -> tuple[float, ...]:
        return hermite_weights(len(state.differences), step - state.newest, self.config.sigma)[1:]
