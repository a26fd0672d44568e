"""What a drive must show: what is correct on any machine, and what is promised of speed."""

from __future__ import annotations

from collections.abc import Iterator

from app.drive.results import Findings
from app.loadtest.checks import MEMORY_SHARE, Check

LOCKSTEP_RATIO = 1.1
"""Action to frame over the compute of one step, when a step begins with the action."""

FREE_RATIO = 2.1
"""The same when an action waits for the step on its way: a whole one in the worst case."""


def check(findings: Findings) -> list[Check]:
    """Every check."""
    return [*_correctness(findings), *_latency(findings), *_speed(findings)]


def _correctness(findings: Findings) -> Iterator[Check]:
    for name, drive in findings.drives.items():
        yield Check(
            f"{name}: every action is shown, and every frame comes in order",
            f"{drive.actions} actions, {drive.frames} frames; {drive.unseen} not shown, {drive.gaps} gaps, "
            f"{drive.dropped} dropped, {len(drive.errors)} errors",
            drive.whole,
            True,
        )
    background = findings.background
    yield Check(
        "together: every rollout in the background succeeds",
        f"{background.succeeded} succeeded, {background.failed} failed",
        background.succeeded > 0 and not background.failed,
        True,
    )


def _latency(findings: Findings) -> Iterator[Check]:
    for name, drive, most in (
        ("lock-step", findings.lockstep, LOCKSTEP_RATIO),
        ("free", findings.free, FREE_RATIO),
    ):
        yield Check(
            f"{name}: action to frame is at most {most} of its step's compute, at p95",
            f"{drive.ratio.p95:.3f} (median {drive.ratio.p50:.3f})",
            drive.ratio.p95 <= most,
        )


def _speed(findings: Findings) -> Iterator[Check]:
    preset = findings.about["preset"]
    if preset in findings.rates:
        rate = findings.rates[preset].frames_per_second
        yield Check(
            f"`{preset}`: frames come as fast as the model was trained at",
            f"{rate:.1f} of {findings.fps:g} frames/s",
            rate >= findings.fps,
        )
    memory = findings.memory
    grown = None if memory is None else max(0.0, memory.growth * memory.minutes)
    yield Check(
        f"memory grows by at most {MEMORY_SHARE:.0%} after the first quarter",
        "not measured" if memory is None else f"{grown:.1f} of {memory.level:.0f} MiB",
        None if memory is None or grown is None else grown <= MEMORY_SHARE * memory.level,
    )
