"""What a drill found, what it must have found, and the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from app.loadtest.checks import Check
from app.loadtest.measures import Spread
from app.loadtest.report import claims, seconds, table

LEAST_PSNR = 50.0
"""In dB; the arithmetic of another batch rounds differently."""


@dataclass(frozen=True)
class Findings:
    """All figures of a drill.

    Attributes:
        seconds: from the first request until the last rollout had ended.
        kills: when a server was killed.
        unended: accepted rollouts that did not end in time.
        twice, unknown, missing: rollouts that are listed or were accepted twice; that are listed though
            nobody asked for them; that are not listed.
        changed: rollouts that were no longer what they were when they had ended.
        damaged: those without all of their frames.
        compared: PSNR in dB of rollouts that were taken over, against an undisturbed run of each.
        taken_over: rollouts that several processes worked on; ``takeovers`` counts how often.
        resumed_chunks: chunks that those did not compute again.
        reposted: rollouts that were asked for more than once, with one idempotency key.
        broken: requests that a dying server did not answer.
        unexpected: answers that no client should get.
        undisturbed, disturbed: seconds from acceptance until the client saw the end.
    """

    about: dict[str, Any]
    seconds: float
    kills: list[float]
    accepted: int
    succeeded: int
    failures: list[str]
    unended: int
    twice: int
    unknown: int
    missing: int
    changed: int
    damaged: int
    compared: list[float]
    taken_over: int
    takeovers: int
    resumed_chunks: int
    chunks: int
    reposted: int
    broken: int
    refused: int
    unexpected: list[str]
    undisturbed: Spread
    disturbed: Spread

    def as_json(self) -> dict[str, Any]:
        """Everything, as plain data."""
        return asdict(self)


def check(found: Findings) -> list[Check]:
    """Every check; all of them must hold on any machine."""
    worst = min(found.compared, default=0.0)
    return [
        Check(
            "every accepted rollout succeeds",
            f"{found.accepted} accepted, {found.succeeded} succeeded, {len(found.failures)} failed, "
            f"{found.unended} did not end",
            found.accepted > 0 and found.succeeded == found.accepted,
            True,
        ),
        Check(
            "each has exactly one result, whole and final",
            f"{found.twice} twice, {found.missing} missing, {found.unknown} that nobody asked for, "
            f"{found.damaged} without all frames, {found.changed} changed after their end",
            not (found.twice or found.missing or found.unknown or found.damaged or found.changed),
            True,
        ),
        Check(
            "servers died while they had work",
            f"{len(found.kills)} killed, {found.taken_over} rollouts taken over {found.takeovers} times",
            len(found.kills) > 0 and found.taken_over > 0,
            True,
        ),
        Check(
            "rollouts that were taken over are what they are when nothing happens",
            f"{len(found.compared)} compared: decisions equal, PSNR at least {worst:.1f} dB"
            if worst
            else "decisions differ, or nothing was compared",
            worst >= LEAST_PSNR if found.compared else None,
            True,
        ),
        Check(
            "no client gets an answer that it should not",
            f"{len(found.unexpected)} such answers",
            not found.unexpected,
            True,
        ),
    ]


def as_markdown(found: Findings, checks: Sequence[Check]) -> str:
    """The whole report."""
    about = found.about
    lines = ["# Killed servers", "", f"{about['machine']}.", ""]
    lines += [
        f"{about['replicas']} servers with one Redis, model `{about['model']}`, {about['policy']}, "
        f"{about['frames']} frames with {about['steps']} denoise steps a chunk. {about['clients']} clients "
        f"ask for asynchronous rollouts for {about['asked']:g} s, one after another; every "
        f"{about['every']:g} s one server gets SIGKILL and is started again. A lease is "
        f"{about['lease']:g} s. A client whose request is not answered asks the other server, with the same "
        "idempotency key.",
        "",
    ]
    lines += claims(checks)
    lines += ["## Work", ""]
    rows = [
        ["rollouts accepted", str(found.accepted)],
        ["succeeded", str(found.succeeded)],
        ["until the last one had ended, s", seconds(found.seconds)],
        ["servers killed", str(len(found.kills))],
        ["rollouts taken over", str(found.taken_over)],
        ["takeovers", str(found.takeovers)],
        ["chunks of all rollouts", str(found.chunks)],
        ["chunks that takeovers did not compute again", str(found.resumed_chunks)],
        ["rollouts asked for more than once", str(found.reposted)],
        ["requests that a dying server did not answer", str(found.broken)],
        ["requests refused for now (409, 429, 503)", str(found.refused)],
    ]
    lines += table(["", ""], rows)
    lines += ["## From acceptance to the end", "", "As the clients saw it, in seconds.", ""]
    lines += table(
        ["rollouts", "number", "p50", "p95", "longest"],
        [
            [name, str(one.count), seconds(one.p50), seconds(one.p95), seconds(one.highest)]
            for name, one in (("undisturbed", found.undisturbed), ("taken over", found.disturbed))
        ],
    )
    problems = [*found.failures, *found.unexpected]
    if problems:
        lines += ["## Problems", "", *(f"- {problem}" for problem in problems[:20])]
    return "\n".join(lines).rstrip() + "\n"
