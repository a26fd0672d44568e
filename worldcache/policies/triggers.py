"""What ``worldcache`` adds to its drift at each cached step, by the trigger that is chosen.

Every trigger looks at the published prediction, whatever predictor is in use, so that another
predictor changes what a step returns and not how the drift is measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from worldcache.policies.math import CHAOTIC, LINEAR, drift_increments

Trigger: TypeAlias = Literal["cas", "interval", "difference", "norm", "curvature"]


@dataclass(frozen=True)
class Streak:
    """What is known at a FULL step of the cached steps that may follow.

    Attributes:
        output, velocity, acceleration: y0, v0 and a, each ``[N, d]``.
        velocity_norm, acceleration_norm: ``|v0|`` and ``|a|``, ``[N]``.
        kappa: curvature, ``[N]``.
        classes: int8 ``[N]``, by curvature.
        over_chaotic: divide sums over chaotic tokens by their number instead of by N.
        turn: ``c_k h0`` of each cached step, ``[count]``.
        eps: keeps the scale of an output of 0 finite.
    """

    output: Tensor
    velocity: Tensor
    acceleration: Tensor
    velocity_norm: Tensor
    acceleration_norm: Tensor
    kappa: Tensor
    classes: Tensor
    over_chaotic: bool
    turn: Tensor
    eps: float

    def increments(self, trigger: Trigger) -> Tensor:
        """What each cached step adds to the drift, float32 ``[count]``.

        ``cas``: the mean of ``kappa |y(k) - y(k-1)|`` over chaotic tokens, as published.
        ``interval``: nothing, so that ``max_skip`` alone ends a streak.
        ``difference``: the mean of ``|y(k) - y(k-1)|`` over all tokens.
        ``norm``: that, over the mean of ``|y0|``.
        ``curvature``: the mean of ``kappa`` over chaotic tokens.
        """
        if trigger == "cas":
            return self._chaotic_moves(self._chaotic_curvature())
        if trigger == "interval":
            return torch.zeros_like(self.turn)
        if trigger == "curvature":
            return self._chaotic_curvature().sum().expand_as(self.turn)
        moves = self._moves()
        if trigger == "norm":
            moves = moves / (torch.linalg.vector_norm(self.output, dim=-1).mean() + self.eps)
        return moves

    def _chaotic_curvature(self) -> Tensor:
        """``kappa / M`` of each chaotic token and 0 of any other, ``[N]``."""
        chaotic = self.classes == CHAOTIC
        share = chaotic.sum().clamp(min=1) if self.over_chaotic else chaotic.numel()
        # 0 times a curvature that is not finite is NaN: nothing hides
        weight: Tensor = self.kappa * chaotic / share
        return weight

    def _moves(self) -> Tensor:
        """Mean over all tokens of how far a cached step moves the prediction: stable ones stay."""
        num_tokens = self.classes.numel()
        linear = (self.velocity_norm * (self.classes == LINEAR)).sum() / num_tokens
        return self._chaotic_moves((self.classes == CHAOTIC).float() / num_tokens) + linear

    def _chaotic_moves(self, token_weight: Tensor) -> Tensor:
        return drift_increments(
            token_weight,
            self.velocity_norm,
            self.acceleration_norm,
            (self.velocity * self.acceleration).sum(dim=-1),
            self.turn,
        )
