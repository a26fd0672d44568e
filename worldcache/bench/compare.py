"""Times policies against each other on the same work, in one run.

Machines are shared and noisy, so every repeat runs each policy once, in turn, and what is reported
is the median over repeats of the ratio to the uncached rollout of the same repeat.
"""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldcache.api import RolloutResult, rollout
from worldcache.models.base import WorldModel
from worldcache.policies.registry import make_policy


@dataclass(frozen=True)
class Contender:
    """A policy with parameters, under the name that the table shows."""

    label: str
    policy: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class Comparison:
    """What one contender took, next to the uncached rollout of the same repeat.

    Attributes:
        full_share: FULL steps over all steps.
        time_ratio: median of its denoise time over the uncached one.
        time_ratio_spread: smallest and largest of those ratios.
        speed_up: 1 / ``time_ratio``.
        denoise_ms: median denoise time of one rollout, in milliseconds.
        psnr: of its RGB frames to the uncached ones, in dB; infinite when they are equal.
        depth_difference: mean absolute difference of depth to the uncached frames.
    """

    label: str
    steps_total: int
    steps_full: int
    full_share: float
    time_ratio: float
    time_ratio_spread: tuple[float, float]
    speed_up: float
    denoise_ms: float
    psnr: float
    depth_difference: float


def compare(
    model: WorldModel,
    contenders: Sequence[Contender],
    *,
    actions: Sequence[object],
    start: str | None = None,
    num_inference_steps: int = 50,
    repeats: int = 5,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Comparison]:
    """Run every contender ``repeats`` times, with the repeat's number as seed.

    Args:
        contenders: compared with ``none``, which is always run.
    """
    entries = [Contender("none", "none", {}), *(c for c in contenders if c.policy != "none")]
    runs: list[list[RolloutResult]] = [[] for _ in entries]
    for repeat in range(repeats):
        for index, entry in enumerate(entries):
            runs[index].append(
                rollout(
                    model,
                    actions=actions,
                    start=start,
                    policy=make_policy(entry.policy, **entry.parameters),
                    seed=repeat,
                    num_inference_steps=num_inference_steps,
                )
            )
            progress(repeat * len(entries) + index + 1, repeats * len(entries))
    return [_summary(entry.label, mine, runs[0]) for entry, mine in zip(entries, runs, strict=True)]


def _summary(label: str, mine: Sequence[RolloutResult], uncached: Sequence[RolloutResult]) -> Comparison:
    ratios = [a.stats.denoise_seconds / b.stats.denoise_seconds for a, b in zip(mine, uncached, strict=True)]
    ratio = statistics.median(ratios)
    total = sum(r.stats.steps_total for r in mine)
    full = sum(r.stats.steps_full for r in mine)
    errors = [
        np.square(a.frames["rgb"].astype(float) - b.frames["rgb"].astype(float)).mean()
        for a, b in zip(mine, uncached, strict=True)
    ]
    mse = float(np.mean(errors))
    return Comparison(
        label=label,
        steps_total=total,
        steps_full=full,
        full_share=full / total,
        time_ratio=ratio,
        time_ratio_spread=(min(ratios), max(ratios)),
        speed_up=1 / ratio,
        denoise_ms=1000 * statistics.median(r.stats.denoise_seconds for r in mine),
        psnr=10 * np.log10(255**2 / mse) if mse else float("inf"),
        depth_difference=float(
            np.mean(
                [
                    np.abs(a.frames["depth"] - b.frames["depth"]).mean()
                    for a, b in zip(mine, uncached, strict=True)
                ]
            )
        ),
    )


def machine() -> str:
    """The machine in words: processor, cores, torch and its threads."""
    names = [
        line.partition(":")[2].strip()
        for line in _read(Path("/proc/cpuinfo")).splitlines()
        if line.startswith("model name")
    ]
    processor = names[0] if names else platform.processor() or platform.machine()
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return (
        f"{processor}, {os.cpu_count()} cores{gpu}, torch {torch.__version__} "
        f"with {torch.get_num_threads()} threads"
    )


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def as_markdown(results: Sequence[Comparison]) -> str:
    """The table that the README shows."""
    lines = [
        "| policy | FULL steps | time / uncached | speed-up | PSNR to uncached (dB) | depth difference |",
        "|---|---|---|---|---|---|",
    ]
    for r in results:
        low, high = r.time_ratio_spread
        psnr = "-" if np.isinf(r.psnr) else f"{r.psnr:.1f}"
        steps = f"{r.steps_full} of {r.steps_total}"
        ratio = f"{r.time_ratio:.3f} ({low:.3f} to {high:.3f})"
        lines.append(
            f"| `{r.label}` | {steps} | {ratio} | {r.speed_up:.2f}x | {psnr} | {r.depth_difference:.3f} |"
        )
    return "\n".join(lines)


def as_json(results: Sequence[Comparison]) -> list[dict[str, Any]]:
    """The results as plain data; an infinite PSNR becomes ``None``."""
    return [{**asdict(r), "psnr": None if np.isinf(r.psnr) else r.psnr} for r in results]
