"""The findings as a Markdown report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from app.drive.results import Drive, Findings
from app.loadtest.checks import Check
from app.loadtest.report import claims, table


def as_markdown(findings: Findings, checks: Sequence[Check]) -> str:
    """The whole report."""
    about, compute = findings.about, findings.compute
    lines = ["# Sessions over a WebSocket", "", f"{about['machine']}.", ""]
    lines += [
        f"Model `{about['model']}` in {about['dtype']}, `{about['preset']}`, {about['steps']} denoise steps "
        f"a chunk, {about['frames_per_step']} frames a step, all modalities as PNG.",
        "",
    ]
    lines += claims(checks)
    lines += [
        "## Action to frame",
        "",
        f"A step takes {_ms(compute.p50)} ms to denoise and decode (median of {compute.count} over HTTP with "
        f"nothing else going on; p95 {_ms(compute.p95)}). From sending an action to the first picture that "
        "shows it, as the client measures it; `of its step` is over what the step that shows it took to "
        "denoise and decode. The server's time is from the action's arrival until that picture is sent.",
        "",
        *_latencies(findings, {"lock-step": findings.lockstep, "free": findings.free}),
        "## Frame rate",
        "",
        f"One action held in free mode. The model was trained at {findings.fps:g} frames a second.",
        "",
        *_rates(findings),
    ]
    lines += _memory(findings)
    names = ("lock-step", "free")
    background = findings.background
    lines += [
        "## Together",
        "",
        f"Two sessions at once, one in each mode, and rollouts in the background: {background.succeeded} "
        f"succeeded, {background.failed} failed.",
        "",
        *_latencies(findings, dict(zip(names, findings.together, strict=True))),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _latencies(findings: Findings, drives: Mapping[str, Drive]) -> list[str]:
    rows = [
        [
            name,
            f"{drive.seconds:g}",
            str(drive.steps),
            str(drive.frames),
            str(drive.actions),
            *(_ms(value) for value in (drive.client.p50, drive.client.p95, drive.client.p99)),
            *(f"{ratio:.3f}" for ratio in (drive.ratio.p50, drive.ratio.p95)),
            *(_ms(value) for value in (drive.server.p50, drive.server.p95, drive.server.p99)),
            f"{drive.frames_per_second:.1f}",
        ]
        for name, drive in drives.items()
    ]
    heading = ["mode", "s", "steps", "frames", "actions", "p50, ms", "p95", "p99", "p50 of its step", "p95"]
    heading += ["server p50, ms", "p95", "p99", "frames/s"]
    return table(heading, rows)


def _rates(findings: Findings) -> list[str]:
    rows = [
        [
            f"`{preset}`",
            f"{drive.seconds:g}",
            str(drive.frames),
            f"{drive.frames_per_second:.1f}",
            f"{drive.frames_per_second / findings.fps:.2f}",
        ]
        for preset, drive in findings.rates.items()
    ]
    return table(["cache", "s", "frames", "frames/s", "of the model's"], rows)


def _memory(findings: Findings) -> list[str]:
    memory, first, last = findings.memory, findings.first_quarter, findings.last_quarter
    if memory is None or first is None or last is None:
        return []
    return [
        "## Memory",
        "",
        f"Of the server during lock-step and free: {first:.1f} MiB in the first quarter, {last:.1f} MiB in "
        f"the last; {memory.growth:+.2f} MiB a minute after the first quarter, {memory.range:.1f} MiB "
        "between the highest and the lowest sample.",
        "",
    ]


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f}"
