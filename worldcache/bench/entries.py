"""What is compared: policies over a grid, the controls, and caches of other projects.

An entry says what to run. Where a parameter decides how many steps are FULL only through what the
model does, the entry names the parameter and the number that it should hit, and ``tuning.py`` finds
the value.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any

from worldcache.bench.solvers import DPM, EULER, UNIPC

TARGETS = (7, 10, 12, 17, 24)
"""FULL steps of 50 at which policies are compared."""

SMALL_BUDGETS = (4, 5)
"""Fewer than any other policy is run at, for ``forecast`` alone."""

TAYLORSEER_INTERVALS = MappingProxyType({7: 15, 12: 5, 17: 4})
"""Of diffusers' TaylorSeer, as ``taylor`` is tuned near these numbers of FULL steps of 50."""


@dataclass(frozen=True)
class Tune:
    """A parameter that is sought so that ``target`` steps are FULL; a higher value gives fewer.

    Attributes:
        parameter: its name.
        low, high: where to look.
        target: FULL steps per chunk.
        integer: whether only whole numbers are allowed; others are sought on a logarithmic scale.
        blind: whether the FULL steps do not depend on what the model does, so that it need not be run.
    """

    parameter: str
    low: float
    high: float
    target: float
    integer: bool = False
    blind: bool = False


@dataclass(frozen=True)
class Entry:
    """One way to generate the work.

    Attributes:
        label: its name, unique within a run.
        family: entries of a family share a line in the plot.
        policy, parameters: the cache policy.
        tune: a parameter that is not settled yet.
        solver, steps: another sampler and number of steps than the model's; the policy is ``none``.
        hook: a cache of another project, by the name in ``external.py``; ``parameters`` are its.
        rollouts: whether it also runs on the rollouts.
        reference: whether it is also compared with many more steps.
        everywhere: whether it also runs at the settings other than ``base``.
    """

    label: str
    family: str
    policy: str = "none"
    parameters: Mapping[str, Any] = field(default_factory=dict)
    tune: Tune | None = None
    solver: str | None = None
    steps: int | None = None
    hook: str | None = None
    rollouts: bool = False
    reference: bool = False
    everywhere: bool = False

    def spec(self) -> dict[str, Any]:
        """What it runs, as plain data: a result is only valid for the spec that it was made with."""
        names = ("policy", "parameters", "tune", "solver", "steps", "hook")
        return {name: value for name, value in asdict(self).items() if name in names and value}


UNCACHED = Entry("none", "none", rollouts=True, reference=True, everywhere=True)

VOYAGER = Entry(
    "worldcache, Voyager's preset",
    "worldcache",
    "worldcache",
    {"max_skip": 6, "drift_threshold": 1.0, "warmup_steps": 5},
    rollouts=True,
    reference=True,
    everywhere=True,
)
AETHER = Entry(
    "worldcache, Aether's preset",
    "worldcache",
    "worldcache",
    {"max_skip": 2, "drift_threshold": 0.2, "warmup_steps": 10},
    rollouts=True,
)


def make_entries(
    targets: Sequence[int] = TARGETS, *, presets: Mapping[str, Any] | None = None
) -> list[Entry]:
    """All entries, the uncached run first.

    Args:
        presets: the model's presets, by name.
    """
    entries = [UNCACHED, VOYAGER, AETHER]
    for target in targets:
        entries += _policies(target)
        entries += _controls(target)
    entries += [_budget(budget) for budget in SMALL_BUDGETS if budget < min(targets)]
    middle = min(targets, key=lambda target: abs(target - 12))
    entries += _ablations(middle)
    for target in (t for t in targets if t in TAYLORSEER_INTERVALS):
        entries += _hooks(target)
    for name, preset in (presets or {}).items():
        if preset.policy != "none":
            entries.append(
                Entry(f"preset {name}", f"preset {name}", preset.policy, preset.parameters, rollouts=True)
            )
    return entries


def quick_entries(targets: Sequence[int] = (7, 12)) -> list[Entry]:
    """A handful that ends within a minute."""
    kept = ("taylor-2", "hicache", "worldcache", "forecast", "fewer steps, Euler", "fewer steps, UniPC")
    entries = [UNCACHED, VOYAGER]
    for target in targets:
        entries += [e for e in (*_policies(target), *_controls(target)) if e.family in kept]
    return entries


def _policies(target: int) -> Iterator[Entry]:
    """Every policy, tuned to ``target`` FULL steps."""

    def tuned(family: str, policy: str, tune: Tune, name: str = "", **parameters: Any) -> Entry:
        label = f"{name or family}, {target} FULL"
        selected = family in ("taylor-1", "hicache", "interval") and target == 12
        main = family not in ("taylor-3", "forecast-tolerance")
        return Entry(
            label, family, policy, parameters, tune, rollouts=selected, everywhere=main, reference=selected
        )

    every = Tune("interval", 1, 25, target, integer=True, blind=True)
    yield tuned("interval", "interval", every)
    for order in (1, 2, 3):
        yield tuned(f"taylor-{order}", "taylor", every, order=order, warmup_steps=3)
    yield tuned("hicache", "hicache", every, order=2, warmup_steps=3)
    yield tuned("easycache", "easycache", Tune("threshold", 1e-4, 10.0, target), warmup_steps=3)
    yield tuned("teacache", "teacache", Tune("threshold", 1e-4, 10.0, target))
    yield tuned(
        "magcache", "magcache", Tune("threshold", 1e-4, 10.0, target, blind=True), max_skip=20, retention=0.06
    )
    drift = Tune("drift_threshold", 1e-4, 1e3, target)
    streak = Tune("max_skip", 1, 25, target, integer=True, blind=True)
    yield tuned("worldcache", "worldcache", drift, max_skip=20, warmup_steps=3)
    yield tuned(
        "worldcache",
        "worldcache",
        streak,
        "worldcache, max_skip alone",
        trigger="interval",
        warmup_steps=3,
    )
    if target > 12:
        yield tuned(
            "worldcache", "worldcache", drift, "worldcache, published warmup", max_skip=6, warmup_steps=5
        )
    yield _budget(target)
    yield tuned(
        "forecast-tolerance", "forecast", Tune("tolerance", 1e-6, 1.0, target), "forecast by tolerance"
    )


def _budget(full_steps: int) -> Entry:
    return Entry(
        f"forecast, {full_steps} FULL",
        "forecast",
        "forecast",
        {"full_steps": full_steps},
        rollouts=True,
        reference=True,
        everywhere=True,
    )


def _controls(target: int) -> Iterator[Entry]:
    """The same number of calls on a shorter schedule."""
    for name, solver in (("Euler", EULER), ("UniPC", UNIPC), ("DPM++", DPM)):
        family = f"fewer steps, {name}"
        yield Entry(
            f"{family}, {target}",
            family,
            solver=solver,
            steps=target,
            reference=solver != DPM,
            everywhere=solver != DPM,
        )


def _ablations(target: int) -> Iterator[Entry]:
    """The published ablations of ``worldcache``, at equal FULL steps."""
    every = Tune("max_skip", 1, 25, target, integer=True, blind=True)
    for predictor in ("reuse", "linear", "damped", "random", "chtp"):
        yield Entry(
            f"ablation, predictor {predictor}",
            "ablation",
            "worldcache",
            {"predictor": predictor, "trigger": "interval", "warmup_steps": 3},
            every,
        )
    for trigger in ("interval", "difference", "norm", "curvature", "cas"):
        tune = every if trigger == "interval" else Tune("drift_threshold", 1e-6, 1e6, target)
        fixed = {} if trigger == "interval" else {"max_skip": 20}
        yield Entry(
            f"ablation, trigger {trigger}",
            "ablation",
            "worldcache",
            {"predictor": "chtp", "trigger": trigger, "warmup_steps": 3, **fixed},
            tune,
        )


def _hooks(target: int) -> Iterator[Entry]:
    """Caches of other projects on the same backbone."""

    def hook(family: str, name: str, tune: Tune | None = None, **parameters: Any) -> Entry:
        return Entry(f"{family}, {target} FULL", family, parameters=parameters, tune=tune, hook=name)

    threshold = Tune("threshold", 1e-4, 10.0, target)
    interval = TAYLORSEER_INTERVALS[target]
    yield hook("diffusers TaylorSeer", "taylorseer", cache_interval=interval, max_order=1)
    yield hook("diffusers MagCache", "magcache", threshold, max_skip_steps=20, retention_ratio=0.06)
    if target > 10:  # the first of six blocks is computed at every step
        yield hook("diffusers FirstBlockCache", "first_block", threshold)
        residual = Tune("residual_diff_threshold", 1e-4, 10.0, target)
        yield hook("cache-dit DBCache", "cache_dit", residual)
