"""What was measured at the real size of the large models, as Markdown. ``real_size.py`` measures it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

GIB = 2**30

NOTE = (
    "Random weights of the real size: times and memory are those of the real models, pictures and decisions "
    "are not. Which steps are FULL is fixed by index; each cached step is predicted by `worldcache` at its "
    "full cost, token classes included. `denoise` has all steps and nothing else. `of the ideal` is the "
    "speed-up over steps / FULL: 1 if a cached step cost nothing. `peak` is what tensors took, weights "
    "included."
)


@dataclass(frozen=True)
class Line:
    """A chunk of one kind. Times in seconds, medians over repeats.

    Attributes:
        label: what computed it.
        decisions: one letter a step, ``F`` computed or ``.`` predicted.
        prepare, denoise, decode: the parts of the chunk.
        full_step: a FULL step.
        speed_up: of ``denoise``, over the uncached chunk of the same repeat.
        peak_bytes: of device memory; ``None`` on the CPU.
    """

    label: str
    decisions: str
    prepare: float
    denoise: float
    decode: float
    full_step: float
    speed_up: float
    peak_bytes: int | None

    @property
    def share_of_ideal(self) -> float:
        """1 if cached steps had cost nothing."""
        return self.speed_up * self.decisions.count("F") / len(self.decisions)


@dataclass(frozen=True)
class Report:
    """One model.

    Attributes:
        sizes: what was measured, in words by name; empty if the weights could not be made.
        lines: the uncached chunk first.
        failure: why there are none.
    """

    model: str
    seed: int
    num_steps: int
    repeats: int
    sizes: Mapping[str, str] = field(default_factory=dict)
    lines: tuple[Line, ...] = ()
    failure: str | None = None


def as_markdown(reports: Sequence[Report], machine: str, dtype: str) -> str:
    """The whole report."""
    lines = ["# Large models at their real size", "", f"{machine}.", "", NOTE, ""]
    for report in reports:
        lines += [f"## `{report.model}`", "", _terms(report, dtype), ""]
        lines += [report.failure, ""] if report.failure else _table(report)
    return "\n".join(lines).rstrip() + "\n"


def _terms(report: Report, dtype: str) -> str:
    sizes = [f"{name} {value}" for name, value in report.sizes.items()]
    run = f"{report.num_steps} steps, {dtype}, seed {report.seed}, {report.repeats} of each in turn"
    return "; ".join([*sizes, run]) + "."


def _table(report: Report) -> list[str]:
    first = report.lines[0]
    rows = [
        "| chunk | FULL | denoise, s | a FULL step, ms | speed-up | of the ideal | decode, s | peak, GiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for line in report.lines:
        peak = "-" if line.peak_bytes is None else f"{line.peak_bytes / GIB:.2f}"
        rows.append(
            f"| {line.label} | {line.decisions.count('F')} of {len(line.decisions)} | {line.denoise:.2f} "
            f"| {1000 * line.full_step:.1f} | {line.speed_up:.2f}x | {line.share_of_ideal:.3f} "
            f"| {line.decode:.2f} | {peak} |"
        )
    whole = first.prepare + first.denoise + first.decode
    rows += [
        "",
        f"The uncached chunk in all: {whole:.2f} s, {first.prepare:.2f} s of them before its first step.",
    ]
    decisions = [f"- {line.label}: `{line.decisions}`" for line in report.lines]
    return [*rows, "", "Decisions:", "", *decisions, ""]
