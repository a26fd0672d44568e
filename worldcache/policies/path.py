"""A chunk's walk from noise to data as plain numbers: where its steps lie and how much each one weighs.

Knows nothing of tensors, models or policies. Noise levels are those of flow matching,
``x = (1 - sigma) x0 + sigma n``, falling from step to step; after the last step sigma is 0. An Euler step
from ``s`` to ``s + 1`` that uses the data prediction D is ``x <- r x + (1 - r) D`` with
``r = sigma_(s+1) / sigma_s``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def log_snr(sigmas: Sequence[float], alphas: Sequence[float]) -> tuple[float, ...]:
    """``log(alpha / sigma)`` of each step, finite and rising.

    Where there is no signal it counts as a quarter of what it is one step later.
    """
    floor = alphas[1] / 4 if len(alphas) > 1 else 1.0
    return tuple(math.log(max(alpha, floor) / sigma) for alpha, sigma in zip(alphas, sigmas, strict=True))


def shrink(sigmas: Sequence[float], step: int) -> float:
    """r of a step: the share of the latent that it keeps; 0 at the last one."""
    return sigmas[step + 1] / sigmas[step] if step + 1 < len(sigmas) else 0.0


def place(sigmas: Sequence[float], count: int, spacing: float) -> tuple[int, ...]:
    """``count`` steps, the first and the last among them, evenly spread in ``sigma^(1 / spacing)``.

    With a spacing of 1 they are even in sigma, with a larger one they crowd towards the end, where a
    data prediction is most of what comes out.

    Args:
        sigmas: one noise level per step.
        count: how many; all steps if there are fewer. A single one is the first.
        spacing: rho of Karras et al., arXiv 2206.00364, equation 5.
    """
    total = len(sigmas)
    count = min(count, total)
    if count == 1:
        return (0,)
    first, last = (sigma ** (1 / spacing) for sigma in (sigmas[0], sigmas[-1]))
    chosen = [0]
    for index in range(1, count - 1):
        wanted = (first + (last - first) * index / (count - 1)) ** spacing
        room = range(chosen[-1] + 1, total - (count - 1 - index))
        chosen.append(min(room, key=lambda step: abs(sigmas[step] - wanted)))
    return (*chosen, total - 1)


def streak_terms(
    sigmas: Sequence[float], coordinate: Sequence[float], newest: int, step: int
) -> tuple[float, float]:
    """Where the latent stands before ``step`` if every step after ``newest`` was predicted.

    With a data prediction that moves by a slope S along ``coordinate``, and a correction ``delta`` that
    the first predicted step takes back, the latent is
    ``x(newest) + (sigma(step) - sigma(newest)) y0 + p S + q delta``.

    Returns:
        p and q.
    """
    moved, corrected = 0.0, 0.0
    for s in range(newest + 1, step):
        r = shrink(sigmas, s)
        moved = r * moved + (1 - r) * (coordinate[s] - coordinate[newest])
        corrected = r * (corrected + (s == newest + 1))
    return moved, corrected


def correction_terms(
    sigmas: Sequence[float], coordinate: Sequence[float], newest: int, step: int
) -> tuple[float, float]:
    """What a streak from ``newest`` should have added to the latent, once the output of ``step`` is known.

    Every step between used ``D0 + h S``. Interpolating between both ends instead of extrapolating from
    one would have used ``D0 + theta (D - D0)``. The difference in the latent at ``step`` is
    ``a (D - D0) - b S``.

    Returns:
        a and b; both 0 where nothing was predicted.
    """
    towards, along = 0.0, 0.0
    whole = coordinate[step] - coordinate[newest]
    for s in range(newest + 1, step):
        r, h = shrink(sigmas, s), coordinate[s] - coordinate[newest]
        towards = r * towards + (1 - r) * h / whole
        along = r * along + (1 - r) * h
    return towards, along
