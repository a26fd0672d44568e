"""A load test from the first request to the last, against a server that runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import httpx

from app.loadtest.backbone import SIZES, BackboneMeter
from app.loadtest.cancel import cancel_many, look
from app.loadtest.client import LoadClient, connected, describe
from app.loadtest.closed import measure_batching, sweep
from app.loadtest.measures import mixed_rate
from app.loadtest.open import Traffic, measure_load, summarise_memory
from app.loadtest.results import Findings, Load, Point, summarise_turns
from app.loadtest.server import watching_memory
from app.loadtest.work import PolicyChoice, Work
from worldcache.errors import WorldCacheError

Progress: TypeAlias = Callable[[str, str, int, int], None]
"""Told of a stage, what it is at, its steps done and in all."""

CANCEL_FRAMES = 4
"""How many times longer than the others a rollout is that will be cancelled."""

CANCEL_CLIENTS = 8


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        policies: the first one is what the others are compared with.
        frames, steps: of every rollout; ``None`` steps for the model's own.
        concurrency: numbers of clients of the closed loops.
        seconds: of each of them.
        together: rollouts at once, against the same number one after another.
        repeats: of that comparison.
        share: of the sustainable rate that the steady mix comes at.
        steady_seconds: of the steady mix.
        overload: times the sustainable rate that the overload comes at.
        overload_seconds: of the overload.
        cancellations: rollouts that are cancelled.
        memory_every: seconds between two looks at the server's memory.
        sizes, calls: rows of the backbone calls in the table, and how many of each.
    """

    policies: Sequence[PolicyChoice]
    frames: int = 16
    steps: int | None = None
    concurrency: Sequence[int] = (1, 2, 4, 8, 16)
    seconds: float = 15.0
    together: int = 8
    repeats: int = 3
    share: float = 0.7
    steady_seconds: float = 60.0
    overload: float = 2.0
    overload_seconds: float = 900.0
    cancellations: int = 1000
    memory_every: float = 1.0
    sizes: Sequence[int] = SIZES
    calls: int = 15


@dataclass(frozen=True)
class Target:
    """The server that is measured.

    Attributes:
        url: where it listens.
        key: API key, if it wants one.
        pid: of its process, if it runs on this machine and its memory is to be watched.
        max_active, max_queue: its settings.
    """

    url: str
    key: str | None
    pid: int | None
    max_active: int
    max_queue: int


async def run(
    plan: Plan,
    target: Target,
    model: str,
    meter: BackboneMeter | None,
    about: Mapping[str, Any],
    progress: Progress,
) -> Findings:
    """Everything in the plan.

    Args:
        model: name of the model to ask for.
        meter: times backbone calls on the server's machine, while that has nothing to do.
        about: for the head of the report.

    Raises:
        InvalidInput: the server cannot do what the plan asks for.
        WorldCacheError: the server stopped answering.
    """
    async with connected(target.url, target.key) as http:
        work = Work.of(await describe(http, model), plan.frames, plan.steps)
        try:
            return await _run(plan, target, LoadClient(http, work), meter, about, progress)
        except httpx.HTTPError as error:
            raise WorldCacheError(f"{target.url} stopped answering: {error!r}") from error


async def _run(
    plan: Plan,
    target: Target,
    client: LoadClient,
    meter: BackboneMeter | None,
    about: Mapping[str, Any],
    progress: Progress,
) -> Findings:
    def stage(name: str) -> Callable[[str, int, int], None]:
        return lambda note, done, total: progress(name, note, done, total)

    def counted(name: str) -> Callable[[int, int], None]:
        return lambda done, total: progress(name, "", done, total)

    backbone = {} if meter is None else meter.measure(plan.sizes, plan.calls, counted("backbone"))
    for choice in plan.policies:
        await client.try_out(choice)
    points = await sweep(client, plan.policies, plan.concurrency, plan.seconds, stage("closed loops"))
    turns = await measure_batching(
        client, plan.policies, plan.together, plan.repeats, meter, stage(f"{plan.together} at once")
    )
    sustainable = sustainable_rate(points)
    steady = await measure_load(
        client,
        plan.policies,
        Traffic(plan.share * sustainable, plan.steady_seconds, plan.share),
        counted("steady mix"),
    )
    before = await look(client, target.pid)
    async with watching_memory(target.pid, plan.memory_every) as samples:
        overload = await _overload(plan, target, client, sustainable, counted("overload"))
    after = await look(client, target.pid, before)
    cancellations = await cancel_many(
        client,
        plan.policies[0],
        plan.cancellations,
        frames=CANCEL_FRAMES * plan.frames,
        clients=max(1, min(CANCEL_CLIENTS, (target.max_active + target.max_queue) // 2)),
        pid=target.pid,
        progress=counted("cancellations"),
    )
    return Findings(
        about={**about, "model": client.work.model, "frames": plan.frames, "steps": client.work.steps},
        capacity=(target.max_active, target.max_queue),
        backbone=backbone,
        points=points,
        batching=[summarise_turns(mine, turns[0]) for mine in turns],
        sustainable=sustainable,
        steady=steady,
        overload=overload,
        before=before,
        after=after,
        memory=summarise_memory(samples, plan.overload_seconds),
        cancellations=cancellations,
        turns=[turn for mine in turns for turn in mine],
    )


async def _overload(
    plan: Plan,
    target: Target,
    client: LoadClient,
    sustainable: float,
    progress: Callable[[int, int], None],
) -> Load:
    """Twice too much for as long as planned; a burst at its beginning fills the server."""
    traffic = Traffic(
        plan.overload * sustainable,
        plan.overload_seconds,
        plan.overload,
        burst=target.max_active + target.max_queue,
        later=True,
        seed=1,
    )
    return await measure_load(client, plan.policies, traffic, progress)


def sustainable_rate(points: Sequence[Point]) -> float:
    """Rollouts a second of the mix, by each policy's throughput at the most clients.

    Raises:
        WorldCacheError: a policy has none.
    """
    most = max(point.clients for point in points)
    rates = {point.policy: point.rollouts_per_second for point in points if point.clients == most}
    idle = [policy for policy, rate in rates.items() if rate <= 0]
    if idle:
        raise WorldCacheError(f"no rollout of {', '.join(idle)} succeeded with {most} clients")
    return mixed_rate(list(rates.values()))
