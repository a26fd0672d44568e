"""Throughput and latency against the number of clients, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from app.loadtest.results import Point
from worldcache.bench.plot import GRID, INK, LOOKS, MUTED

SPARE = ("#8250df", "#2da44e", "#bf8700", "#bc4c00", "#1b7c83")
"""Colours of policies that the benchmark does not draw."""


def plot_points(points: Sequence[Point], path: Path) -> None:
    """Draw two panels, one line a policy; latency with p50 as a line and p95 as a dashed one."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullLocator

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    spare = cycle(SPARE)
    for policy in dict.fromkeys(point.policy for point in points):
        mine = [point for point in points if point.policy == policy]
        clients = [point.clients for point in mine]
        name = policy.partition(" ")[0]
        colour = INK if name == "none" else LOOKS[name].colour if name in LOOKS else next(spare)
        style = {"color": colour, "marker": "o", "markersize": 5, "linewidth": 2}
        left.plot(clients, [point.frames_per_second for point in mine], label=policy, **style)
        right.plot(clients, [point.latency.p50 for point in mine], label=policy, **style)
        right.plot(
            clients, [point.latency.p95 for point in mine], color=colour, linewidth=1, linestyle=(0, (4, 2))
        )
    ticks = sorted({point.clients for point in points})
    for axis, title in ((left, "frames a second"), (right, "latency, s (dashed: p95)")):
        _dress(axis, title, ticks)
    left.set_ylim(bottom=0)
    right.set_yscale("log")
    right.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    right.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    right.yaxis.set_minor_locator(NullLocator())
    left.legend(frameon=False, fontsize=9.5)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, facecolor="white")
    plt.close(figure)


def _dress(axis: Any, title: str, ticks: Sequence[int]) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator

    axis.set_title(title, loc="left", fontsize=11, color=INK, fontweight="bold")
    axis.set_xlabel("clients", color=MUTED)
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(FixedLocator(list(ticks)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xticklabels([str(tick) for tick in ticks])
    axis.grid(True, color=GRID, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.tick_params(colors=MUTED, labelsize=9, length=0)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axis.spines[side].set_color(GRID)
