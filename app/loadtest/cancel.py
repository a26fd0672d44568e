"""Rollouts that are cancelled, and whether anything is left of them."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import count

from app.loadtest.client import LoadClient, Outcome
from app.loadtest.results import Cancellations, Levels
from app.loadtest.server import resident_memory
from app.loadtest.work import PolicyChoice

CALM_SECONDS = 120.0
"""How long the server may take to let go of what was cancelled."""

WAITS = (0.03, 0.3)
"""Seconds between a request and its cancellation: some rollouts still wait in line, most run."""

REFUSED_SECONDS = 0.1
"""Before a refused request is made again."""

LOOKS = 5
"""Samples of memory, of which the median counts."""


async def look(client: LoadClient, pid: int | None, calm: Levels | None = None) -> Levels:
    """Queue, active rollouts and memory, once the first two are as they were ``calm`` or time is up.

    Args:
        pid: of the server, if it runs on this machine.
        calm: earlier levels; both gauges at 0 if left out.
    """
    wanted = (calm.queue_depth, calm.active) if calm else (0.0, 0.0)
    deadline = time.monotonic() + CALM_SECONDS
    while True:
        gauges = await _gauges(client)
        if gauges == wanted or time.monotonic() > deadline:
            break
        await asyncio.sleep(0.1)
    levels = []
    for _ in range(LOOKS if pid is not None else 0):
        await asyncio.sleep(0.1)
        levels.append(resident_memory(pid) if pid is not None else None)
    known = [level for level in levels if level is not None]
    return Levels(*gauges, statistics.median(known) if known else None)


async def _gauges(client: LoadClient) -> tuple[float, float]:
    metrics, model = await client.scrape(), client.work.model
    return (
        metrics.total("worldcache_queue_depth", model=model) or 0.0,
        metrics.total("worldcache_active_rollouts", model=model) or 0.0,
    )


async def cancel_many(
    client: LoadClient,
    choice: PolicyChoice,
    number: int,
    *,
    frames: int,
    clients: int,
    pid: int | None,
    progress: Callable[[int, int], None],
) -> Cancellations:
    """Ask for rollouts and cancel them, by turns with DELETE and by closing the connection.

    Args:
        choice: policy of the rollouts.
        frames: of each, enough to outlast the wait before it is cancelled.
        clients: that do so at the same time.
        pid: of the server, if it runs on this machine.
    """
    before = await look(client, pid)
    metrics = await client.scrape()
    generator = random.Random(0)
    outcomes: list[Outcome] = []

    async def cancel(turns: Iterator[int]) -> None:
        for turn in turns:
            if turn >= number:
                return
            way = client.disconnect if turn % 2 else client.delete
            while (outcome := await way(choice, frames, generator.uniform(*WAITS))) is Outcome.REFUSED:
                await asyncio.sleep(REFUSED_SECONDS)
            outcomes.append(outcome)
            progress(len(outcomes), number)

    turns = count()
    await asyncio.gather(*(cancel(turns) for _ in range(clients)))
    after = await look(client, pid, before)
    grown = (await client.scrape()).since(metrics)
    return Cancellations(
        deleted=outcomes.count(Outcome.DELETED),
        disconnected=outcomes.count(Outcome.DISCONNECTED),
        escaped=outcomes.count(Outcome.ESCAPED),
        failed=outcomes.count(Outcome.FAILED),
        counted=grown.total("worldcache_rollouts_total", model=client.work.model, status="cancelled") or 0.0,
        before=before,
        after=after,
    )
