"""How fast single rollouts are, measured in turn.

Machines are shared and noisy, so every repeat runs each entry once, in turn, and what is reported is
the median over repeats of the ratio to the uncached rollout of the same repeat.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from worldcache.api import RolloutResult, rollout
from worldcache.bench.entries import UNCACHED, VOYAGER, Entry
from worldcache.bench.run import Bench
from worldcache.bench.store import Key, Record
from worldcache.errors import WorldCacheError

TIMING = "timing"
FRAMES = 16
TIMED = (
    r"none|worldcache, Voyager's preset|worldcache, (7|12) FULL|forecast, \d+ FULL|taylor-1, 12 FULL"
    r"|hicache, 12 FULL|preset .*"
)
"""Labels of what is timed."""


def measure_timing(
    bench: Bench,
    entries: Sequence[Entry],
    *,
    repeats: int,
    only: str = "",
    progress: Callable[[str, int, int], None] = lambda label, done, total: None,
) -> list[Record]:
    """Time a handful of entries against the uncached rollout; all of them again unless all are there."""
    timed = [e for e in entries if re.fullmatch(TIMED, e.label) and re.search(only, e.label)]
    timed = [UNCACHED, *(e for e in timed if e != UNCACHED)]
    if not only and VOYAGER not in timed:
        timed.append(VOYAGER)
    terms = {"weights": bench.digest, "frames": FRAMES, "repeats": repeats, "steps": bench.num_steps}
    keys = [Key(bench.model.info.id, bench.setting.name, TIMING, e.label) for e in timed]
    specs = [{"run": terms, "spec": entry.spec()} for entry in timed]
    found = [bench.store.find(key, spec) for key, spec in zip(keys, specs, strict=True)]
    if all(found):
        return [record for record in found if record]
    settled: list[tuple[Key, Any, Entry, dict[str, Any]]] = []
    for key, spec, entry in zip(keys, specs, timed, strict=True):
        try:
            parameters = bench.settle(entry)
            bench.policy(entry, parameters)
            settled.append((key, spec, entry, parameters))
        except WorldCacheError as error:
            bench.store.add(key, spec, {"family": entry.family, "failure": str(error)})
    runs: list[list[RolloutResult]] = [[] for _ in settled]
    for repeat in range(repeats):
        for index, (_, _, entry, parameters) in enumerate(settled):
            progress(f"timing: {entry.label}", repeat * len(settled) + index, repeats * len(settled))
            runs[index].append(_run(bench, entry, parameters, repeat))
    return [
        bench.store.add(
            key,
            spec,
            {
                "family": entry.family,
                "policy": entry.policy,
                "parameters": parameters,
                **summary(mine, runs[0]),
            },
        )
        for (key, spec, entry, parameters), mine in zip(settled, runs, strict=True)
    ]


def summary(mine: Sequence[RolloutResult], uncached: Sequence[RolloutResult]) -> dict[str, Any]:
    """Medians over repeats, and what they come to against free cached steps."""
    speed_ups = [
        b.stats.denoise_seconds / a.stats.denoise_seconds for a, b in zip(mine, uncached, strict=True)
    ]
    chunks = sum(len(r.stats.chunks) for r in mine)
    total = sum(r.stats.steps_total for r in mine)
    full = sum(r.stats.steps_full for r in mine)
    speed_up = statistics.median(speed_ups)
    return {
        "steps_total": total / chunks,
        "steps_full": full / chunks,
        "denoise_ms": 1000 * statistics.median(r.stats.denoise_seconds for r in mine),
        "speed_up": speed_up,
        "speed_up_spread": [min(speed_ups), max(speed_ups)],
        "share_of_ideal": speed_up * full / total,
    }


def _run(bench: Bench, entry: Entry, parameters: dict[str, Any], seed: int) -> RolloutResult:
    """One rollout, the actions held for four frames each."""
    info = bench.model.info
    names = info.action_space.describe()["names"]
    return rollout(
        bench.model,
        actions=[names[(seed + frame // 4) % len(names)] for frame in range(FRAMES)],
        start=info.starts[seed % len(info.starts)],
        policy=bench.policy(entry, parameters),
        seed=seed,
        num_inference_steps=bench.num_steps,
        guidance_scale=1.0,
    )
