"""Closed loops: clients that ask again as soon as they have their answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from statistics import fmean

from app.loadtest.backbone import AROUND, BackboneMeter
from app.loadtest.client import LoadClient
from app.loadtest.measures import calls_seconds, completed, spread
from app.loadtest.results import Answer, Point, Turn
from app.loadtest.scrape import EngineUse, engine_use
from app.loadtest.work import PolicyChoice


async def measure_point(client: LoadClient, choice: PolicyChoice, clients: int, seconds: float) -> Point:
    """Throughput and latency of a policy at a number of clients.

    Args:
        clients: each asks again until the time is over, and once at least.
        seconds: after which nobody asks again; what runs is waited for.
    """
    before = await client.scrape()
    start = time.monotonic()

    async def ask() -> list[Answer]:
        answers = [await client.run(choice)]
        while time.monotonic() < start + seconds:
            answers.append(await client.run(choice))
        return answers

    groups = await asyncio.gather(*(ask() for _ in range(clients)))
    use = engine_use((await client.scrape()).since(before), client.work.model)
    answers = [answer for group in groups for answer in group]
    await client.forget(answers)
    good = [answer for answer in answers if answer.succeeded]
    end = min(group[-1].ended for group in groups)  # until here every client was at it
    rate = completed([(a.began, a.ended) for a in good], start, end) / (end - start)
    return Point(
        choice.label,
        clients,
        rate,
        rate * client.work.frames,
        latency=spread([a.latency for a in good]),
        first_frame=spread([a.first_frame for a in good]),
        queue=spread([a.queue for a in good]),
        failed=len(answers) - len(good),
        batch=use.batch,
        outside=use.outside,
    )


async def sweep(
    client: LoadClient,
    choices: Sequence[PolicyChoice],
    concurrency: Sequence[int],
    seconds: float,
    progress: Callable[[str, int, int], None],
) -> list[Point]:
    """Every policy at every number of clients; the policies take turns."""
    points: list[Point] = []
    total = len(choices) * len(concurrency)
    for clients in concurrency:
        for choice in choices:
            progress(f"{choice.label}, {clients} clients", len(points), total)
            points.append(await measure_point(client, choice, clients, seconds))
    progress("", total, total)
    return points


async def measure_batching(
    client: LoadClient,
    choices: Sequence[PolicyChoice],
    rollouts: int,
    repeats: int,
    meter: BackboneMeter | None,
    progress: Callable[[str, int, int], None],
) -> list[list[Turn]]:
    """Equal rollouts at once against the same number one after another; a list of turns by policy.

    Every repeat goes through all policies, so that what else the machine does meets all alike.
    """
    turns: list[list[Turn]] = [[] for _ in choices]
    done = count(1)
    for _ in range(repeats):
        for choice, mine in zip(choices, turns, strict=True):
            mine.append(await _take_turn(client, choice, rollouts, meter))
            progress(choice.label, next(done), repeats * len(choices))
    return turns


async def _take_turn(
    client: LoadClient, choice: PolicyChoice, rollouts: int, meter: BackboneMeter | None
) -> Turn:
    start = time.monotonic()
    apart = [await client.run(choice) for _ in range(rollouts)]
    apart_seconds = time.monotonic() - start
    table = _table(meter, rollouts)
    before = await client.scrape()
    start = time.monotonic()
    together = await asyncio.gather(*(client.run(choice) for _ in range(rollouts)))
    together_seconds = time.monotonic() - start
    use = engine_use((await client.scrape()).since(before), client.work.model)
    await client.forget([*apart, *together])
    backbone = _mean_seconds(use, table, _table(meter, rollouts))
    failed = sum(not answer.succeeded for answer in (*apart, *together))
    return Turn(choice.label, rollouts, together_seconds, apart_seconds, backbone, use, failed)


def _table(meter: BackboneMeter | None, most: int) -> dict[int, float]:
    """Seconds of a call by its rows, right now.

    Everything waits meanwhile, here and at the server: in a thread of its own torch would have a second
    pool of workers, and be slower than the server.
    """
    return {} if meter is None else meter.measure(range(1, most + 1), AROUND)


def _mean_seconds(use: EngineUse, *tables: Mapping[int, float]) -> float | None:
    """What the calls of the server would have taken by the tables, the mean of them."""
    return fmean(calls_seconds(table, use.sizes) for table in tables) if all(tables) else None
