"""What a model's ``calibration.json`` says: what policies need to know of it, and which presets it has.

Pure functions of a benchmark's results.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from worldcache.bench.report import select
from worldcache.bench.store import Record
from worldcache.errors import InvalidInput


@dataclass(frozen=True)
class Bar:
    """What a preset must keep of the uncached run.

    Attributes:
        kept: share of PSNR and SSIM to the true frames, and of control accuracy.
        depth: most that the depth error may be, as a multiple.
    """

    kept: float
    depth: float


BARS: Mapping[str, Bar] = MappingProxyType(
    {"quality": Bar(0.995, 1.005), "balanced": Bar(0.98, 1.02), "fast": Bar(0.95, 1.05)}
)
"""By preset, the strictest first."""

AUTO_BAR = "balanced"
"""``auto`` is the cheapest preset that holds this one's bar."""


@dataclass(frozen=True)
class Candidate:
    """An entry of a benchmark with all that decides on it.

    Attributes:
        label, policy, parameters: of the entry.
        steps_full: per chunk.
        cost: what is smallest in the cheapest: measured time over uncached time, or FULL over all steps
            where it was not timed.
        timed: whether ``cost`` was measured.
        kept: the smallest of the shares of the uncached run that PSNR, SSIM and control accuracy keep.
        depth: depth error as a multiple of the uncached run's.
        measured: the figures, as plain data.
    """

    label: str
    policy: str
    parameters: Mapping[str, Any]
    steps_full: float
    cost: float
    timed: bool
    kept: float
    depth: float
    measured: Mapping[str, Any]

    def holds(self, bar: Bar) -> bool:
        return self.kept >= bar.kept and self.depth <= bar.depth


def candidates(records: Iterable[Record], model: str) -> list[Candidate]:
    """The policies that were run on chunks and on rollouts, the cheapest first.

    Raises:
        InvalidInput: the uncached run is missing.
    """
    mine = select(records, model=model, setting="base")
    by_part = {
        part: {r["entry"]: r for r in select(mine, part=part)} for part in ("chunks", "rollouts", "timing")
    }
    chunks, rollouts, timing = by_part.values()
    if "none" not in chunks or "none" not in rollouts:
        raise InvalidInput(
            f"the results have no uncached chunks and rollouts of {model!r}; run the benchmark"
        )
    found = []
    for label, chunk in chunks.items():
        long = rollouts.get(label)
        if long is None or chunk["policy"] == "none":
            continue
        shares = [
            *_kept(chunk["to_truth"]["all"], chunks["none"]["to_truth"]["all"]),
            *_kept(long["to_truth"]["all"], rollouts["none"]["to_truth"]["all"]),
        ]
        if "control" in long:
            accuracy = [r["control"]["generated"]["accuracy"] for r in (long, rollouts["none"])]
            shares.append(accuracy[0] / accuracy[1])
        depth = max(
            r["to_truth"]["all"]["depth"]["error"] / none["to_truth"]["all"]["depth"]["error"]
            for r, none in ((chunk, chunks["none"]), (long, rollouts["none"]))
        )
        timed = timing.get(label)
        share_full = chunk["steps_full"] / chunk["steps_total"]
        found.append(
            Candidate(
                label,
                chunk["policy"],
                chunk["parameters"],
                chunk["steps_full"],
                1 / timed["speed_up"] if timed else share_full,
                timed is not None,
                min(shares),
                depth,
                _figures(chunk, long, timed, min(shares), depth),
            )
        )
    return sorted(found, key=lambda c: c.cost)


def choose_presets(found: Sequence[Candidate]) -> tuple[dict[str, Any], str]:
    """For every bar the cheapest candidate that holds it, and the name of ``auto``.

    A bar that nothing holds becomes the policy ``none``.
    """
    chosen: dict[str, Candidate | None] = {
        name: next((c for c in found if c.holds(bar)), None) for name, bar in BARS.items()
    }
    presets = {
        name: {
            "policy": "none" if c is None else c.policy,
            "parameters": {} if c is None else dict(c.parameters),
            "measured": {} if c is None else dict(c.measured),
        }
        for name, c in chosen.items()
    }
    holding = {name: c for name, c in chosen.items() if c is not None and c.holds(BARS[AUTO_BAR])}
    auto = min(holding, key=lambda name: holding[name].cost) if holding else AUTO_BAR
    return presets, auto


def _kept(ours: Mapping[str, Any], uncached: Mapping[str, Any]) -> list[float]:
    return [ours["rgb"][name] / uncached["rgb"][name] for name in ("psnr", "ssim")]


def _figures(chunk: Record, long: Record, timed: Record | None, kept: float, depth: float) -> dict[str, Any]:
    """What a user wants to know of a preset."""
    figures: dict[str, Any] = {
        "steps_full": round(chunk["steps_full"], 2),
        "steps_total": chunk["steps_total"],
        "psnr_to_uncached": {m: round(v["psnr"], 2) for m, v in chunk["to_uncached"].items()},
        "kept": round(kept, 4),
        "depth_error_ratio": round(depth, 4),
    }
    if timed is not None:
        figures["speed_up"] = round(timed["speed_up"], 3)
    if "control" in long:
        figures["control_accuracy"] = round(long["control"]["generated"]["accuracy"], 4)
    return figures
