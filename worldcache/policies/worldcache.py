"""``worldcache``: curvature decides how each token is predicted, and for how long that can be trusted.

Source: WorldCache, arXiv 2603.06331 (ICML 2026): CHTP predicts by token class, CAS accumulates drift.
In the paper's terms y0, v0 and a are the newest FULL output, its velocity and its acceleration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Literal

import torch
from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError
from torch import Tensor

from worldcache.policies.base import History, Miss, PolicyConfig, PolicyState, Schedule, StepInput
from worldcache.policies.math import (
    CHAOTIC,
    LINEAR,
    STABLE,
    class_masks,
    combination_weights,
    curvature,
    finite_differences,
    quantile_classes,
    turns,
)
from worldcache.policies.planned import PlannedPolicy
from worldcache.policies.triggers import Streak, Trigger

_ONE_CLASS = MappingProxyType({"reuse": STABLE, "linear": LINEAR, "damped": CHAOTIC})


class WorldCacheConfig(PolicyConfig):
    """Parameters of ``worldcache``, with the paper's symbols in brackets; defaults as for Voyager."""

    stable_quantile: float = Field(
        default=0.30,
        ge=0,
        le=1,
        description="Tokens whose curvature ranks below this are stable, and reused (p_s).",
    )
    chaotic_quantile: float = Field(
        default=0.60,
        ge=0,
        le=1,
        validate_default=True,
        description="Tokens whose curvature ranks from this up are chaotic, and damped (p_c); "
        "at least stable_quantile.",
    )
    max_skip: int = Field(default=6, ge=1, le=1000, description="Longest streak of cached steps (n_max).")
    drift_threshold: float = Field(
        default=1.0,
        ge=0,
        description="Accumulated drift from which the next step is FULL (eta); 0 caches nothing.",
    )
    warmup_steps: int = Field(default=5, ge=0, description="First steps that are all FULL.")
    drift_mean: Literal["all", "chaotic"] = Field(
        default="all",
        description="Divide a step's drift by all tokens (published code) or by chaotic ones (paper).",
    )
    eps: float = Field(default=1e-8, gt=0, description="Added to the squared speed in the curvature.")
    predictor: Literal["chtp", "reuse", "linear", "damped", "random"] = Field(
        default="chtp",
        description="Predict tokens by class (chtp), all of them in one way, or by random classes of the "
        "same sizes.",
    )
    trigger: Trigger = Field(
        default="cas",
        description="What adds to the drift: curvature times movement of chaotic tokens (cas), nothing "
        "(interval), movement of all tokens (difference), that relative to the output (norm), or "
        "curvature of chaotic tokens alone (curvature).",
    )

    @field_validator("chaotic_quantile")
    @classmethod
    def _at_least_stable(cls, value: float, info: ValidationInfo) -> float:
        stable = info.data.get("stable_quantile", 0.0)
        if value < stable:
            raise PydanticCustomError(
                "quantile_order",
                "chaotic_quantile ({chaotic}) must be at least stable_quantile ({stable})",
                {"chaotic": value, "stable": stable},
            )
        return value


PUBLISHED_PRESETS: Mapping[str, WorldCacheConfig] = MappingProxyType(
    {
        "voyager": WorldCacheConfig(),
        "aether": WorldCacheConfig(max_skip=2, drift_threshold=0.2, warmup_steps=10),
    }
)


@dataclass
class WorldCacheState(PolicyState):
    """What ``worldcache`` remembers besides the common state.

    Attributes:
        differences: (y0, v0, a) at the newest FULL step, each ``[N, d]``; the first one or two of them
            while fewer than three outputs are known.
        moving, damped: what v0 and a count in each token's prediction, 0 or 1, ``[N, 1]``.
        gap: h0, steps between the two newest FULL steps.
        ranks: p_s and p_c, ``[2]``; from the first FULL step on, like ``turns``.
        turns: c_k of each cached step of the longest streak.
    """

    differences: tuple[Tensor, ...] = ()
    moving: Tensor | None = None
    damped: Tensor | None = None
    gap: int = 1
    ranks: Tensor | None = None
    turns: Tensor | None = None


class WorldCachePolicy(PlannedPolicy[WorldCacheConfig, WorldCacheState]):
    """CHTP and CAS, planned once per FULL step.

    Per token ``kappa = |a| / (|v0|^2 + eps)`` sets its class by quantiles, and the class its prediction:
    stable y0, linear ``y0 + k v0``, chaotic ``y0 + k ((1 - alpha) v0 + alpha v1)``. Each cached step adds
    ``sum_chaotic kappa |y(k) - y(k-1)| / M`` to the drift. A step is FULL within the warmup, at the
    end of the schedule, without curvature, at a drift of ``drift_threshold``, and after ``max_skip``
    cached steps. All of this follows from the FULL outputs and k, so the streak is planned in one read.
    ``predictor`` and ``trigger`` exchange either half, for the ablations of the paper.
    """

    name: ClassVar[str] = "worldcache"
    description: ClassVar[str] = (
        "Predicts each token by the curvature of its output, and computes again once the predicted "
        "drift has accumulated to a threshold."
    )
    source: ClassVar[str] = "WorldCache, arXiv 2603.06331"
    config_type: ClassVar[type[PolicyConfig]] = WorldCacheConfig

    def reset(self, schedule: Schedule) -> WorldCacheState:
        return WorldCacheState(schedule, History(depth=1), drift=0.0)

    @property
    def reach(self) -> int:
        return 3

    @property
    def kept_outputs(self) -> int:
        return 3

    def update(
        self, state: WorldCacheState, step: int, output: Tensor, inputs: StepInput, miss: Miss | None
    ) -> Tensor | None:
        """Refresh differences and classes.

        Returns:
            The drift that each cached step k = 1, 2, ... would add, float32, as many as a streak from
            here may hold; ``None`` if none can start. NaN if the history holds a value that is not
            finite. The host adds them up, in float64.
        """
        if state.differences:
            state.gap = step - state.newest
        else:
            self._put_constants(state, output)
        state.differences = finite_differences(output, state.differences, state.gap, order=2)
        state.history.push(step, output)
        if len(state.differences) < 3:
            return None
        output, velocity, acceleration = state.differences
        velocity_norm = torch.linalg.vector_norm(velocity, dim=-1)
        acceleration_norm = torch.linalg.vector_norm(acceleration, dim=-1)
        kappa = curvature(velocity_norm, acceleration_norm, self.config.eps)
        assert state.ranks is not None and state.turns is not None
        classes = quantile_classes(kappa, state.ranks)
        state.token_class = self._groups(classes, step)
        state.moving, state.damped = class_masks(state.token_class)
        longest = min(self.config.max_skip, state.schedule.last_step - step - 1)
        if longest < 1 or step + 1 < self.config.warmup_steps:
            return None
        streak = Streak(
            output,
            velocity,
            acceleration,
            velocity_norm,
            acceleration_norm,
            kappa,
            classes,
            over_chaotic=self.config.drift_mean == "chaotic",
            turn=state.turns[:longest] * state.gap,
            eps=self.config.eps,
        )
        return streak.increments(self.config.trigger)

    def settle(self, state: WorldCacheState, evidence: Sequence[float]) -> None:
        """Plan the streak: cached steps follow while the drift before them is below the threshold."""
        drift = 0.0
        planned: list[float] = []
        for increment in evidence:
            if drift >= self.config.drift_threshold:
                break
            drift += increment
            planned.append(drift)
        state.planned_drift = tuple(planned)
        state.next_full = state.newest + 1 + len(planned)

    def weights(self, state: WorldCacheState, step: int) -> tuple[float, ...]:
        return combination_weights(step - state.newest, self.config.max_skip, state.gap)

    def add(self, state: WorldCacheState, total: Tensor, weights: Sequence[float]) -> Tensor:
        """Add v0 and a where the token's class has them."""
        assert state.moving is not None and state.damped is not None
        (_, velocity, acceleration), (p, q) = state.differences, weights
        return total.addcmul_(state.moving, velocity, value=p).addcmul_(state.damped, acceleration, value=q)

    def _put_constants(self, state: WorldCacheState, output: Tensor) -> None:
        """Bring the numbers that every FULL step needs to the output's device, once per chunk."""
        longest = min(self.config.max_skip, state.schedule.num_steps)
        state.ranks = output.new_tensor([self.config.stable_quantile, self.config.chaotic_quantile])
        state.turns = output.new_tensor(turns(self.config.max_skip, longest))

    def _groups(self, classes: Tensor, step: int) -> Tensor:
        """The class that each token is predicted by, int8 ``[N]``."""
        if self.config.predictor == "chtp":
            return classes
        if self.config.predictor == "random":
            generator = torch.Generator().manual_seed(step)
            return classes[torch.randperm(len(classes), generator=generator).to(classes.device)]
        return torch.full_like(classes, _ONE_CLASS[self.config.predictor])
