"""How far two sets of pictures are apart, as pure functions.

Pictures are float32 tensors ``[S, F, H, W, C]`` from 0 to 1: S samples of F frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

Pictures: TypeAlias = Mapping[str, Tensor]
"""Pictures by modality."""

PSNR_CAP = 100.0
"""dB; equal pictures would have infinitely many, and float32 noise begins not far above."""

SSIM_WINDOW = 7
"""Side of the window, scikit-image's default."""


def split(pictures: Tensor, frames: int) -> Tensor:
    """``[S, F, ...]`` as ``[S * F/frames, frames, ...]``; surplus frames are dropped."""
    whole = pictures.shape[1] // frames * frames
    return pictures[:, :whole].reshape(-1, frames, *pictures.shape[2:])


def mean_squared_errors(a: Tensor, b: Tensor) -> Tensor:
    """One number per sample, float64."""
    return (a.double() - b.double()).square().flatten(1).mean(1)


def psnr(mse: Tensor) -> Tensor:
    """dB for pictures from 0 to 1, capped at ``PSNR_CAP``."""
    return (-10 * torch.log10(mse.clamp(min=1e-30))).clamp(max=PSNR_CAP)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity per sample, float64: the mean over frames, channels and windows.

    As scikit-image's ``structural_similarity`` with its defaults and a data range of 1: uniform windows
    of 7x7 that lie inside the picture, variances of samples.
    """
    height, width = a.shape[2:4]
    x, y = (t.double().permute(0, 1, 4, 2, 3).reshape(-1, 1, height, width) for t in (a, b))
    count = SSIM_WINDOW**2

    def mean(t: Tensor) -> Tensor:
        return F.avg_pool2d(t, SSIM_WINDOW, stride=1)

    mean_x, mean_y = mean(x), mean(y)
    unbias = count / (count - 1)
    var_x = unbias * (mean(x * x) - mean_x**2)
    var_y = unbias * (mean(y * y) - mean_y**2)
    cov = unbias * (mean(x * y) - mean_x * mean_y)
    c1, c2 = 0.01**2, 0.03**2
    similarity = ((2 * mean_x * mean_y + c1) * (2 * cov + c2)) / (
        (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    )
    return similarity.reshape(len(a), -1).mean(1)


def closeness(pictures: Pictures, target: Pictures, frames: int) -> dict[str, dict[str, float]]:
    """By modality: PSNR and SSIM, the means over pieces of ``frames`` frames, and the pooled PSNR.

    ``psnr`` is the mean of each piece's PSNR, ``psnr_pooled`` the PSNR of the mean squared error.
    """
    result = {}
    for name in pictures:
        ours, theirs = split(pictures[name], frames), split(target[name], frames)
        mse = mean_squared_errors(ours, theirs)
        result[name] = {
            "psnr": float(psnr(mse).mean()),
            "psnr_lowest": float(psnr(mse).min()),
            "psnr_pooled": float(psnr(mse.mean())),
            "ssim": float(ssim(ours, theirs).mean()),
        }
    return result


def faithfulness(
    pictures: Pictures, truth: Pictures, frames: int, units: Mapping[str, float], moving: Sequence[bool]
) -> dict[str, Any]:
    """Closeness to what really happened, over all samples and over those where the view moves.

    Args:
        units: by modality, what 1 stands for: errors are told in its unit.
        moving: for each sample, whether its view moves.
    """

    def measure(chosen: Tensor) -> dict[str, Any]:
        ours = {name: t[chosen] for name, t in pictures.items()}
        theirs = {name: t[chosen] for name, t in truth.items()}
        report: dict[str, Any] = closeness(ours, theirs, frames)
        for name, values in report.items():
            values["error"] = float((ours[name] - theirs[name]).abs().mean()) * units[name]
        return report

    moves = torch.tensor(moving)
    result = {"all": measure(torch.ones_like(moves)), "moving_samples": int(moves.sum())}
    if moves.any():
        result["moving"] = measure(moves)
    return result
