"""The results as a Markdown report, and as plain data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from worldcache.bench.entries import TARGETS
from worldcache.bench.settings import SETTINGS
from worldcache.bench.store import Record

NEAR = 1.0
"""FULL steps by which another policy may exceed a budget and still be compared at it."""


def select(records: Iterable[Record], **wanted: str) -> list[Record]:
    """The records with these values that did not fail."""
    return [r for r in records if "failure" not in r and all(r[k] == v for k, v in wanted.items())]


def front(records: Sequence[Record], families: Sequence[str] | None = None) -> dict[str, list[Record]]:
    """Records by family, in order of FULL steps."""
    names = families or list(dict.fromkeys(r["family"] for r in records))
    return {n: sorted((r for r in records if r["family"] == n), key=lambda r: r["steps_full"]) for n in names}


def best_within(records: Sequence[Record], budget: float, score: Callable[[Record], float]) -> Record | None:
    """The record with the highest score among those within a budget of FULL steps.

    Whoever is not told a number of FULL steps may exceed the budget by ``NEAR``.
    """
    fitting = [
        r for r in records if r["steps_full"] <= budget + (0 if "full_steps" in r["parameters"] else NEAR)
    ]
    return max(fitting, key=score) if fitting else None


def as_markdown(records: Sequence[Record], machine: str, targets: Sequence[int] = TARGETS) -> str:
    """The whole report."""
    lines = ["# Benchmark", "", f"{machine}.", ""]
    for model in dict.fromkeys(r["model"] for r in records):
        mine = [r for r in records if r["model"] == model]
        lines += [f"## `{model}`", ""]
        for setting in dict.fromkeys(r["setting"] for r in mine):
            lines += _setting(model, setting, [r for r in mine if r["setting"] == setting], targets)
    return "\n".join(lines).rstrip() + "\n"


def as_json(records: Sequence[Record], machine: str) -> dict[str, Any]:
    """Everything, as plain data."""
    return {"machine": machine, "results": list(records)}


def _setting(model: str, setting: str, records: Sequence[Record], targets: Sequence[int]) -> list[str]:
    described = SETTINGS[setting].description if setting in SETTINGS else setting
    lines = [f"### `{model}`, setting `{setting}`: {described}", ""]
    chunks = select(records, part="chunks")
    if chunks:
        count = chunks[0]["terms"]["run"]["chunks"]
        steps = chunks[0]["terms"]["run"]["steps"]
        lines += [f"{count} held-out chunks of {steps} steps.", ""]
        modalities = list(chunks[0]["to_uncached"])
        lines += _equal_budget(chunks, targets, modalities)
        lines += _chunks(chunks, modalities)
    for part, write in (
        ("rollouts", _rollouts),
        ("reference", _reference),
        ("timing", _timing),
        ("overhead", _overhead),
    ):
        mine = select(records, part=part)
        if mine:
            lines += write(mine)
    failed = [r for r in records if "failure" in r]
    if failed:
        lines += ["Did not run:", ""]
        lines += [f"- `{r['entry']}` ({r['part']}): {r['failure']}" for r in failed] + [""]
    return lines


def _equal_budget(chunks: Sequence[Record], targets: Sequence[int], modalities: Sequence[str]) -> list[str]:
    """Each family's best PSNR within each budget; the best of a column is bold."""
    families = {n: rs for n, rs in front(chunks).items() if n not in ("none", "ablation")}
    compared = [r for rs in families.values() for r in rs]
    targets = [t for t in targets if any(abs(r["steps_full"] - t) <= NEAR for r in compared)]
    lines = []
    for modality in modalities:

        def score(record: Record, modality: str = modality) -> float:
            return float(record["to_uncached"][modality]["psnr"])

        cells: dict[str, list[float | None]] = {}
        for name, mine in families.items():
            found = [best_within(mine, target, score) for target in targets]
            cells[name] = [None if r is None else score(r) for r in found]
        best = [
            max((row[i] for row in cells.values() if row[i] is not None), default=None)  # type: ignore[type-var]
            for i in range(len(targets))
        ]
        lines += [
            f"PSNR of {modality} to the uncached run (dB; the mean over chunks), the best of each family "
            f"within a budget of FULL steps (others than `forecast` may exceed it by {NEAR:g}):",
            "",
        ]
        lines += _table(
            ["policy", *(f"{t} FULL" for t in targets)],
            [
                [f"`{name}`", *(_bold(value, value == best[i]) for i, value in enumerate(row))]
                for name, row in cells.items()
            ],
        )
    return lines


def _chunks(chunks: Sequence[Record], modalities: Sequence[str]) -> list[str]:
    uncached = next((r for r in chunks if r["entry"] == "none"), None)
    rows = []
    for record in (r for mine in front(chunks).values() for r in mine):
        truth, moving = record["to_truth"]["all"], record["to_truth"].get("moving")
        ratio = "-" if uncached is None else f"{record['seconds'] / uncached['seconds']:.3f}"
        rows.append(
            [
                f"`{record['entry']}`",
                _parameters(record),
                f"{record['steps_full']:.1f} of {record['steps_total']:g}",
                ratio,
                *(f"{record['to_uncached'][m]['psnr']:.1f}" for m in modalities),
                *(f"{record['to_uncached'][m]['ssim']:.4f}" for m in modalities),
                f"{truth['rgb']['psnr']:.2f}",
                f"{truth['rgb']['ssim']:.4f}",
                f"{truth['depth']['error']:.3f}" if "depth" in truth else "-",
                f"{moving['rgb']['psnr']:.2f}" if moving else "-",
            ]
        )
    heading = ["entry", "parameters", "FULL", "time"]
    heading += [f"PSNR {m}" for m in modalities] + [f"SSIM {m}" for m in modalities]
    heading += ["true PSNR", "true SSIM", "true depth error", "true PSNR, moving"]
    lines = [
        "Every entry. `time`: of the batched run, over the uncached one's (rough: the runs are far apart). "
        "PSNR and SSIM are to the uncached run; the true ones are to what really happened.",
        "",
    ]
    return lines + _table(heading, rows)


def _rollouts(records: Sequence[Record]) -> list[str]:
    run = records[0]["terms"]["run"]
    rows = []
    for record in records:
        truth = record["to_truth"]["all"]
        control = record.get("control")
        rows.append(
            [
                f"`{record['entry']}`",
                f"{record['steps_full']:.1f} of {record['steps_total']:g}",
                *(f"{values['psnr']:.1f}" for values in record["to_uncached"].values()),
                f"{truth['rgb']['psnr']:.2f}",
                f"{truth['rgb']['ssim']:.4f}",
                f"{truth['depth']['error']:.3f}" if "depth" in truth else "-",
                f"{control['generated']['accuracy']:.1%}" if control else "-",
                f"{control['generated']['last_quarter']:.1%}" if control else "-",
            ]
        )
    lines = [
        f"{run['rollouts']} rollouts of {run['rollout_frames']} frames; `control` is the share of actions "
        "that a classifier of real frames recognises in the generated ones.",
        "",
    ]
    heading = ["entry", "FULL a chunk", *(f"PSNR {m}" for m in records[0]["to_uncached"])]
    heading += ["true PSNR", "true SSIM", "true depth error", "control", "control, last quarter"]
    return lines + _table(heading, rows)


def _reference(records: Sequence[Record]) -> list[str]:
    run = records[0]["terms"]["run"]
    modalities = list(records[0]["to_reference"])
    rows = [
        [
            f"`{r['entry']}`",
            f"{r['steps_full']:.1f} of {r['steps_total']:g}",
            *(f"{r['to_reference'][m]['psnr']:.1f}" for m in modalities),
        ]
        for mine in front(records).values()
        for r in mine
    ]
    lines = [f"PSNR to a run of {run['reference_steps']} steps, {run['reference_chunks']} chunks.", ""]
    return lines + _table(["entry", "FULL", *(f"PSNR {m}" for m in modalities)], rows)


def _timing(records: Sequence[Record]) -> list[str]:
    run = records[0]["terms"]["run"]
    rows = [
        [
            f"`{r['entry']}`",
            f"{r['steps_full']:.1f} of {r['steps_total']:g}",
            f"{r['denoise_ms']:.0f}",
            f"{r['speed_up']:.2f}x ({r['speed_up_spread'][0]:.2f} to {r['speed_up_spread'][1]:.2f})",
            f"{r['share_of_ideal']:.3f}",
        ]
        for r in records
    ]
    lines = [
        f"Speed of single rollouts of {run['frames']} frames, {run['repeats']} of each, in turn: medians of "
        "the ratios of `denoise_ms` within one repeat. The last column is the speed-up over "
        "steps_total/steps_full: 1 if a cached step cost nothing.",
        "",
    ]
    heading = ["entry", "FULL a chunk", "denoise_ms", "speed-up", "of the ideal"]
    return lines + _table(heading, rows)


def _overhead(records: Sequence[Record]) -> list[str]:
    shapes = list(dict.fromkeys(name for r in records for name in r["work"]))
    rows = []
    for record in records:
        cells = [record["work"].get(name) for name in shapes]
        rows.append(
            [
                f"`{record['entry']}`",
                f"{record['steps_full']:.1f}",
                f"{record['time_share_alone']:.1%}",
                f"{record['time_share']:.1%}",
                *("-" if cell is None else f"{100 * cell['share']:.1g} %" for cell in cells),
            ]
        )
    lines = [
        "Cost of control: time spent in the policy over time of the backbone calls on this model; and its "
        "floating-point work over that of the backbone calls, on the shapes of larger models.",
        "",
    ]
    return lines + _table(
        ["entry", "FULL", "time, one row a call", "time, eight rows", *(f"work, {name}" for name in shapes)],
        rows,
    )


def _table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(heading)} |", f"|{'---|' * len(heading)}"]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows), ""]


def _bold(value: float | None, best: bool) -> str:
    if value is None:
        return "-"
    return f"**{value:.1f}**" if best else f"{value:.1f}"


def _parameters(record: Mapping[str, Any]) -> str:
    shown = (f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in record["parameters"].items())
    return ", ".join(shown) or "-"
