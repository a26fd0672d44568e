"""The arithmetic of the policies, as pure functions of tensors and numbers.

Knows nothing of policies, states or schedules, reads nothing to the host, and copies nothing to the
device. In every signature N is the number of tokens and d their width; time is counted in denoise
steps, so a velocity is a change of the output per step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

STABLE, LINEAR, CHAOTIC = 0, 1, 2


def finite_differences(
    output: Tensor, previous: Sequence[Tensor], gap: int, order: int
) -> tuple[Tensor, ...]:
    """Backward differences of the output up to ``order``, as far as the past allows.

    ``D_0 = y``, ``D_i = (D_(i-1) - D_(i-1) at the previous FULL step) / gap``. With three FULL outputs,
    ``D_1`` is the velocity v0 and ``D_2`` the acceleration a = (v0 - v1) / h0.

    Args:
        output: the newest FULL output ``[N, d]``.
        previous: the differences at the previous FULL step, lowest order first; empty at the first.
        gap: steps since the previous FULL step (h0).
        order: the highest difference wanted.

    Returns:
        Up to ``order + 1`` tensors ``[N, d]``; ``D_i`` is in units of output per step to the i.

    Source: TaylorSeer, arXiv 2503.06923, section 3.
    """
    differences = [output]
    for older in previous[:order]:
        differences.append((differences[-1] - older).div_(gap))
    return tuple(differences)


def taylor_weights(count: int, k: int) -> tuple[float, ...]:
    """Of the differences in the Taylor prediction ``sum_i D_i k^i / i!``.

    Args:
        count: how many differences are known, m + 1.
        k: steps since the newest FULL step.

    Returns:
        One weight for each difference, in steps to the i.

    Source: TaylorSeer, arXiv 2503.06923, section 3.
    """
    return tuple(k**i / math.factorial(i) for i in range(count))


def hermite_weights(count: int, k: int, sigma: float) -> tuple[float, ...]:
    """Of the differences in the HiCache prediction ``y0 + sum_(i>=1) D_i / i! * sigma^i * H_i(sigma k)``.

    H_i are the physicists' Hermite polynomials ``2x``, ``4x^2 - 2`` and ``8x^3 - 12x``.

    Args:
        count: how many differences are known, m + 1, at most 4.
        k: steps since the newest FULL step.
        sigma: the contraction, in (0, 1].

    Returns:
        One weight for each difference, in steps to the i.

    Source: HiCache, arXiv 2508.16984.
    """
    x = sigma * k
    polynomials = (1.0, 2 * x, 4 * x**2 - 2, 8 * x**3 - 12 * x)
    return tuple(sigma**i * polynomials[i] / math.factorial(i) for i in range(count))


def add_scaled(total: Tensor, terms: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """``total + sum_i w_i T_i`` in ``total`` itself: what is written again and again stays in the cache."""
    for term, weight in zip(terms, weights, strict=True):
        total.add_(term, alpha=weight)
    return total


def curvature(velocity_norm: Tensor, acceleration_norm: Tensor, eps: float) -> Tensor:
    """How sharply each token's output turns: ``kappa = |a| / (|v0|^2 + eps)``, ``[N]``.

    Args:
        velocity_norm: ``|v0|`` per token, ``[N]``, output per step.
        acceleration_norm: ``|a|`` per token, ``[N]``, output per step squared.
        eps: keeps a token at rest finite, in squared output per step.

    Returns:
        ``[N]``, in units of one over the output's.

    Source: WorldCache, arXiv 2603.06331.
    """
    return acceleration_norm / (velocity_norm.square() + eps)


def quantile_classes(values: Tensor, ranks: Tensor) -> Tensor:
    """Sort tokens into stable, linear and chaotic by where their curvature ranks.

    Stable below the quantile p_s, chaotic from the quantile p_c up, linear otherwise. The
    quantiles interpolate linearly, and rank in float32 as the published code does: a rank in float64
    moves tokens at the border to another class.

    Args:
        values: one curvature per token, ``[N]`` float32. If any is NaN no token ranks: all are linear.
        ranks: p_s and p_c, each in [0, 1], float32 ``[2]``.

    Returns:
        int8 ``[N]``: ``STABLE``, ``LINEAR`` or ``CHAOTIC``.

    Source: WorldCache, arXiv 2603.06331.
    """
    low, high = torch.quantile(values, ranks).unbind()
    return (values >= high).to(torch.int8) - (values < low).to(torch.int8) + LINEAR


def damping(x: float) -> float:
    """The weight ``alpha = 3x^2 - 2x^3`` of the older velocity, for ``x = min(k / max_skip, 1)``.

    Source: WorldCache, arXiv 2603.06331.
    """
    return x * x * (3.0 - 2.0 * x)


def class_masks(classes: Tensor) -> tuple[Tensor, Tensor]:
    """Which tokens move at all, and which of them are damped, as factors.

    Args:
        classes: int8 ``[N]``.

    Returns:
        Two float32 tensors ``[N, 1]`` of 0 and 1: not ``STABLE``, and ``CHAOTIC``.
    """
    column = classes.unsqueeze(-1)
    return column.clamp(max=LINEAR).float(), (column == CHAOTIC).float()


def combination_weights(k: int, max_skip: int, gap: int) -> tuple[float, float]:
    """Weights p, q that make ``y0 + p v0 + q a`` the damped prediction ``k`` steps ahead.

    Published per class: stable ``y0``; linear ``y0 + k v0``; chaotic
    ``y0 + k ((1 - alpha) v0 + alpha v1)``. As ``v1 = v0 - h0 a``, a chaotic token has ``p = k`` and
    ``q = -k alpha h0``; a linear one the same p without q, a stable one neither (:func:`class_masks`).

    Args:
        k: steps since the newest FULL step.
        max_skip: n_max, the scale of the damping.
        gap: h0, steps between the two newest FULL steps.

    Returns:
        Steps, and steps squared.

    Source: WorldCache, arXiv 2603.06331; the regrouping is ours.
    """
    return float(k), -k * damping(min(k / max_skip, 1.0)) * gap


def turns(max_skip: int, count: int) -> list[float]:
    """``c_k = k alpha_k - (k-1) alpha_(k-1)`` for k = 1 ... count.

    A step of the chaotic prediction is ``y(k) - y(k-1) = v0 - c_k h0 a``.
    """
    reach = [k * damping(min(k / max_skip, 1.0)) for k in range(count + 1)]
    return [after - before for before, after in pairwise(reach)]


def drift_increments(
    token_weight: Tensor, velocity_norm: Tensor, acceleration_norm: Tensor, inner: Tensor, turn: Tensor
) -> Tensor:
    """What each cached step adds to the drift, all from three inner products a token.

    The squared length of a step of the chaotic prediction is
    ``|v0|^2 - 2 c_k h0 <v0, a> + (c_k h0)^2 |a|^2``. The increment is the weighted sum of the lengths.

    Args:
        token_weight: ``[N]``, curvature over M for a chaotic token and 0 for any other. A NaN in it
            makes every increment NaN.
        velocity_norm: ``|v0|``, ``[N]``.
        acceleration_norm: ``|a|``, ``[N]``.
        inner: ``<v0, a>``, ``[N]``.
        turn: ``c_k h0`` of each cached step (:func:`turns`), ``[count]``.

    Returns:
        float32 ``[count]``, without unit.

    Source: WorldCache, arXiv 2603.06331; the expansion is ours.
    """
    turn = turn.unsqueeze(-1)
    squared = torch.addcmul(velocity_norm.square(), turn, inner, value=-2.0)
    squared.add_((turn * acceleration_norm).square_())
    return squared.clamp_(min=0.0).sqrt_() @ token_weight
