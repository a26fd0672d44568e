"""Open loops: requests come when they come, whether or not the ones before have been answered."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from app.loadtest.client import LoadClient
from app.loadtest.measures import arrivals, slope, spread
from app.loadtest.results import Answer, Load, Memory
from app.loadtest.work import PolicyChoice, deal

SETTLED = 0.25
"""Share of the time that passes before throughput is looked at."""
HEAP_SETTLED = 0.6
"""And before memory is: the heap keeps what is freed, and grows until it has held the most there can be."""


@dataclass(frozen=True)
class Traffic:
    """What comes when.

    Attributes:
        rate: expected arrivals a second, of all policies together and equally often.
        seconds: during which they come.
        share: of the sustainable rate, for the report.
        burst: requests that come at once at the very beginning.
        later: whether every other request asks for its answer at once and for the rollout later.
        seed: of the times and of the policies' order.
    """

    rate: float
    seconds: float
    share: float
    burst: int = 0
    later: bool = False
    seed: int = 0

    def times(self) -> list[float]:
        """When requests come, from 0 on."""
        return [0.0] * self.burst + arrivals(self.rate, self.seconds, random.Random(self.seed))


async def measure_load(
    client: LoadClient,
    choices: Sequence[PolicyChoice],
    traffic: Traffic,
    progress: Callable[[int, int], None],
) -> Load:
    """Send a mix of policies and wait for all that was accepted."""
    times = traffic.times()
    policies = deal(choices, random.Random(traffic.seed + 1))
    start = time.monotonic()
    done = 0
    late = 0.0

    async def send(choice: PolicyChoice, later: bool) -> Answer:
        nonlocal done
        answer = await client.run(choice, later=later)
        await client.forget([answer])
        done += 1
        progress(done, len(times))
        return answer

    tasks: list[asyncio.Task[Answer]] = []
    for index, (offset, choice) in enumerate(zip(times, policies, strict=False)):
        await asyncio.sleep(max(0.0, start + offset - time.monotonic()))
        late = max(late, time.monotonic() - start - offset)
        tasks.append(asyncio.create_task(send(choice, traffic.later and index % 2 == 1)))
    answers = await asyncio.gather(*tasks)
    return summarise(answers, traffic, start, late)


def summarise(answers: Sequence[Answer], traffic: Traffic, start: float, late: float) -> Load:
    """What came of the requests.

    Args:
        start: when the first was due, on the clients' clock.
        late: longest time by which a request was sent too late.
    """
    good = [a for a in answers if a.succeeded]
    lost = [a for a in answers if (a.accepted or not a.status) and not a.succeeded]
    wrong = [a for a in answers if a.status and not a.accepted and not a.refused]
    settled, last = start + SETTLED * traffic.seconds, start + traffic.seconds
    finished = sum(settled <= a.began + a.latency < last for a in good)
    return Load(
        rate=traffic.rate,
        seconds=traffic.seconds,
        share=traffic.share,
        sent=len(answers),
        later=sum(a.later for a in answers),
        statuses=dict(sorted(Counter(a.status for a in answers).items())),
        accepted=sum(a.accepted for a in answers),
        succeeded=len(good),
        lost=dict(Counter(a.state for a in lost)),
        refused=sum(a.refused for a in answers),
        wrong=len(wrong),
        late=late,
        completed_per_second=finished / (last - settled),
        latency=spread([a.latency for a in good]),
        by_policy={
            label: spread([a.latency for a in good if a.policy == label])
            for label in dict.fromkeys(a.policy for a in answers)
        },
        first_frame=spread([a.first_frame for a in good]),
        queue=spread([a.queue for a in good]),
    )


def summarise_memory(samples: Sequence[tuple[float, float]], seconds: float) -> Memory | None:
    """How memory went during ``seconds`` of load, once the heap has settled; ``None`` without samples."""
    settled = [(at, level) for at, level in samples if HEAP_SETTLED * seconds <= at <= seconds]
    if not settled:
        return None
    levels = [level for _, level in settled]
    return Memory(
        samples=list(samples),
        growth=60 * slope(settled),
        range=max(levels) - min(levels),
        level=sum(levels) / len(levels),
        minutes=(settled[-1][0] - settled[0][0]) / 60,
    )
