"""What calibrated policies need to know of a model, from the recorded steps of an uncached chunk.

Pure functions; whoever calibrates averages or pools over chunks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def magnitude_ratios(outputs: Tensor) -> list[float]:
    """How each step's output grows over the step before it: the mean over tokens of ``|y_s| / |y_(s-1)|``.

    Args:
        outputs: ``[T, N, d]``, the output of every step.

    Returns:
        T ratios. The first is 1, and so is any that would not be finite.

    Source: MagCache, arXiv 2506.09045.
    """
    norms = torch.linalg.vector_norm(outputs.double(), dim=-1)
    ratios = (norms[1:] / norms[:-1]).mean(dim=-1)
    return [1.0, *torch.where(ratios.isfinite(), ratios, 1.0).tolist()]


def relative_changes(values: Tensor) -> list[float]:
    """``mean|v_s - v_(s-1)| / mean|v_(s-1)|`` from step to step: T - 1 numbers from ``[T, ...]``."""
    flat = values.double().flatten(1)
    changes = (flat[1:] - flat[:-1]).abs().mean(dim=1) / flat[:-1].abs().mean(dim=1)
    result: list[float] = changes.tolist()
    return result


def teacache_coefficients(
    modulated_changes: Sequence[float], output_changes: Sequence[float], degree: int = 4
) -> list[float]:
    """The polynomial that tells the output's relative change from the modulated input's.

    A least-squares fit, as published. Pairs that are not finite are left out, and the degree is lower
    where there are too few different pairs for it.

    Args:
        modulated_changes: relative L1 changes of the modulated input, of any number of chunks.
        output_changes: those of the output at the same steps.
        degree: of the polynomial.

    Returns:
        Coefficients, highest power first.

    Source: TeaCache, arXiv 2411.19108, section 3.3.
    """
    pairs = np.array([modulated_changes, output_changes], dtype=np.float64)
    pairs = pairs[:, np.isfinite(pairs).all(axis=0)]
    degree = min(degree, len(np.unique(pairs[0])) - 1)
    if degree < 0:
        return [0.0]
    coefficients: list[float] = np.polyfit(pairs[0], pairs[1], degree).tolist()
    return coefficients
