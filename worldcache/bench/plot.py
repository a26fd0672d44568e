"""The speed-quality front as a picture: FULL steps against PSNR, one line a family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from worldcache.bench.report import front, select
from worldcache.bench.store import Record

INK, MUTED, GRID = "#1f2328", "#6e7781", "#e4e7eb"
TOP = 62.0
"""dB above which the axis grows only if a curve of interest goes there."""


@dataclass(frozen=True)
class Look:
    """How a family is drawn."""

    colour: str
    label: str
    marker: str = "o"
    dashed: bool = False
    strong: bool = False


LOOKS: Mapping[str, Look] = MappingProxyType(
    {
        "forecast": Look("#d1242f", "forecast (ours)", strong=True),
        "forecast-tolerance": Look("#f08c8c", "forecast by tolerance", "s"),
        "worldcache": Look("#0969da", "worldcache", strong=True),
        "hicache": Look("#8250df", "hicache"),
        "taylor-1": Look("#2da44e", "taylor, order 1", "^"),
        "taylor-2": Look("#116329", "taylor, order 2", "v"),
        "taylor-3": Look("#7fbf8e", "taylor, order 3", "<"),
        "interval": Look("#8c959f", "interval", "D"),
        "easycache": Look("#bf8700", "easycache", "P"),
        "teacache": Look("#bc4c00", "teacache", "X"),
        "magcache": Look("#a475f9", "magcache", "h"),
        "fewer steps, Euler": Look("#57606a", "fewer steps, Euler", ".", dashed=True),
        "fewer steps, UniPC": Look("#1b7c83", "fewer steps, UniPC", ".", dashed=True),
        "fewer steps, DPM++": Look("#6cb6bd", "fewer steps, DPM++", ".", dashed=True),
        "diffusers TaylorSeer": Look("#3fb950", "diffusers TaylorSeer", "*", dashed=True),
        "diffusers FirstBlockCache": Look("#d4a72c", "diffusers FirstBlockCache", "*", dashed=True),
        "diffusers MagCache": Look("#c297ff", "diffusers MagCache", "*", dashed=True),
        "cache-dit DBCache": Look("#e16f24", "cache-dit DBCache", "*", dashed=True),
    }
)
"""The families that are drawn, in the legend's order."""


def plot_fronts(records: Sequence[Record], path: Path) -> bool:
    """Draw one row for every model and setting, one panel for every modality.

    Returns:
        Whether there was anything to draw.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    chunks = select(records, part="chunks")
    rows = list(dict.fromkeys((r["model"], r["setting"]) for r in chunks))
    if not rows:
        return False
    modalities = list(dict.fromkeys(name for r in chunks for name in r["to_uncached"]))
    figure, axes = plt.subplots(
        len(rows),
        len(modalities),
        figsize=(5.4 * len(modalities) + 2.6, 4.1 * len(rows) + 0.5),
        squeeze=False,
        sharex=True,
        layout="constrained",
    )
    drawn: dict[str, Any] = {}
    for row, (model, setting) in enumerate(rows):
        mine = select(chunks, model=model, setting=setting)
        for column, modality in enumerate(modalities):
            axis = axes[row][column]
            _panel(axis, mine, modality, drawn)
            axis.set_title(
                f"{model} · {setting} · {modality.upper() if modality == 'rgb' else modality}",
                loc="left",
                fontsize=11,
                color=INK,
                fontweight="bold",
            )
            if column == 0:
                axis.set_ylabel("PSNR to the uncached run (dB)", color=MUTED)
            if row == len(rows) - 1:
                axis.set_xlabel("FULL steps of a chunk (fewer is faster)", color=MUTED)
    shown = [name for name in LOOKS if name in drawn]
    figure.legend(
        [drawn[name] for name in shown],
        [LOOKS[name].label for name in shown],
        loc="outside right upper",
        frameon=False,
        fontsize=9.5,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, facecolor="white")
    plt.close(figure)
    return True


def _panel(axis: Any, records: Sequence[Record], modality: str, drawn: dict[str, Any]) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator

    families = front(records)
    for order, (name, look) in enumerate(LOOKS.items()):
        points = _upper(
            [(r["steps_full"], r["to_uncached"][modality]["psnr"]) for r in families.get(name, ())]
        )
        if not points:
            continue
        (line,) = axis.plot(
            *zip(*points, strict=True),
            color=look.colour,
            marker=look.marker,
            markersize=6.5 if look.strong else 8 if look.marker == "*" else 5,
            linewidth=2.6 if look.strong else 1.3,
            linestyle=(0, (4, 2)) if look.dashed else "-",
            alpha=1.0 if look.strong else 0.85,
            markeredgecolor="white",
            markeredgewidth=0.6,
            zorder=30 - order if look.strong else 20 - order,
        )
        drawn.setdefault(name, line)
    _presets(axis, records, modality)
    total = max((r["steps_total"] for r in families.get("none", ())), default=50)
    axis.set_xscale("log")
    axis.set_xlim(6.3, 28)
    axis.xaxis.set_major_locator(FixedLocator([7, 8, 10, 12, 14, 17, 20, 24]))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xticklabels(["7", "8", "10", "12", "14", "17", "20", "24"])
    _speeds(axis, total)
    axis.grid(True, color=GRID, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.tick_params(colors=MUTED, labelsize=9, length=0)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axis.spines[side].set_color(GRID)


def _presets(axis: Any, records: Sequence[Record], modality: str) -> None:
    """Mark the published presets of ``worldcache``."""
    for record in records:
        if record["entry"].startswith("worldcache,") and record["entry"].endswith("preset"):
            place = (record["steps_full"], record["to_uncached"][modality]["psnr"])
            axis.plot(
                *place, "o", markersize=10, fillstyle="none", color=LOOKS["worldcache"].colour, zorder=40
            )
            axis.annotate(
                record["entry"].removeprefix("worldcache, ").removesuffix(" preset"),
                place,
                xytext=(7, -12),
                textcoords="offset points",
                fontsize=8.5,
                color=LOOKS["worldcache"].colour,
                zorder=40,
            )


def _speeds(axis: Any, total: float) -> None:
    """Along the top: the speed-up if a cached step cost nothing."""
    from matplotlib.ticker import FixedLocator, NullLocator

    other = axis.secondary_xaxis("top")
    steps = [7, 10, 12, 17, 24]
    other.xaxis.set_major_locator(FixedLocator(steps))
    other.xaxis.set_minor_locator(NullLocator())
    other.set_xticklabels([f"{total / n:.1f}x" for n in steps])
    other.tick_params(colors=MUTED, labelsize=8, length=0)
    other.spines["top"].set_visible(False)


def _upper(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other point of at most as many FULL steps beats, in order."""
    kept: list[tuple[float, float]] = []
    for full, value in sorted(points, key=lambda p: (p[0], -p[1])):
        if not kept or value > kept[-1][1]:
            kept.append((full, value))
    return kept
