"""The drill: clients ask, servers die, and at the end everything is looked at again."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np

from app.audit import psnr_db
from app.killtest.fleet import Replica
from app.killtest.load import Accepted, Clients
from app.killtest.results import Findings
from app.loadtest.client import describe
from app.loadtest.measures import spread
from app.loadtest.run import Progress
from app.loadtest.work import PolicyChoice, Work

COMPARED = 5
"""Rollouts that are run again undisturbed, and compared."""

LAST_SECONDS = 180.0
"""How long what was accepted may take after the last request."""

PAGE = 100


@dataclass(frozen=True)
class Plan:
    """What happens.

    Attributes:
        seconds: for which clients ask.
        every: seconds between two kills.
        clients: that ask at the same time.
        frames, steps: of a rollout; steps per chunk, ``None`` for the model's own.
    """

    seconds: float
    every: float
    clients: int
    frames: int
    steps: int | None
    choice: PolicyChoice


async def run(
    plan: Plan, replicas: Sequence[Replica], model: str, about: Mapping[str, Any], progress: Progress
) -> Findings:
    """Everything in the plan.

    Args:
        replicas: that share a Redis.
        about: for the head of the report.
    """
    limits = httpx.Limits(max_connections=None, keepalive_expiry=2)
    async with httpx.AsyncClient(timeout=60, limits=limits, trust_env=False) as http:
        async with httpx.AsyncClient(base_url=replicas[0].url, timeout=60, trust_env=False) as first:
            work = Work.of(await describe(first, model), plan.frames, plan.steps)
        clients = Clients(http, replicas, work, plan.choice)
        began = time.monotonic()
        asking = [asyncio.create_task(clients.keep_asking(began + plan.seconds)) for _ in range(plan.clients)]
        kills = await _kill(plan, replicas, began, progress)
        _, hanging = await asyncio.wait(asking, timeout=LAST_SECONDS)
        for task in hanging:
            task.cancel()
        lasted = time.monotonic() - began
        progress("look again", "", 0, 1)
        findings = await _look_again(
            clients, kills, lasted, {**about, "frames": plan.frames, "steps": work.steps}
        )
        progress("look again", "", 1, 1)
        return findings


async def _kill(plan: Plan, replicas: Sequence[Replica], began: float, progress: Progress) -> list[float]:
    """Kill one server after the other, and start it again at once; when that was."""
    kills: list[float] = []
    total = max(1, int(plan.seconds / plan.every))
    for number in range(total):
        progress("kill", f"{number} killed", number, total)
        await asyncio.sleep(max(0.0, began + (number + 1) * plan.every - time.monotonic()))
        victim, others = replicas[number % len(replicas)], [*replicas]
        others.remove(victim)
        while not any([await asyncio.to_thread(other.is_ready) for other in others]):
            await asyncio.sleep(0.2)  # never the last one
        await asyncio.to_thread(victim.kill)
        kills.append(time.monotonic() - began)
        victim.start()
    progress("kill", f"{total} killed", total, total)
    return kills


async def _look_again(
    clients: Clients, kills: list[float], lasted: float, about: Mapping[str, Any]
) -> Findings:
    """Whether every result is there, whole, unchanged, and there once."""
    accepted = clients.accepted
    ended = [one for one in accepted if one.ended_at is not None]
    changed, damaged = 0, 0
    for one in ended:
        again = await clients.get(f"/v1/rollouts/{one.rollout_id}")
        changed += again.json() != one.answer
        if one.answer["status"] == "succeeded":
            damaged += not await _is_whole(clients, one)
    listed = await _listed(clients)
    latencies = [(one, one.ended_at - one.accepted_at) for one in ended if one.ended_at is not None]
    moved = [one for one in ended if one.answer["stats"]["takeovers"]]
    return Findings(
        about=dict(about),
        seconds=lasted,
        kills=kills,
        accepted=len(accepted),
        succeeded=sum(one.answer["status"] == "succeeded" for one in ended),
        failures=[f"{one.rollout_id}: {one.answer['error']}" for one in ended if one.answer["error"]],
        unended=len(accepted) - len(ended),
        twice=len(listed) - len(set(listed)) + len(accepted) - len({one.rollout_id for one in accepted}),
        unknown=len(set(listed) - {one.rollout_id for one in accepted}),
        missing=len({one.rollout_id for one in accepted} - set(listed)),
        changed=changed,
        damaged=damaged,
        compared=await _compare(clients, moved),
        taken_over=len(moved),
        takeovers=sum(one.answer["stats"]["takeovers"] for one in moved),
        resumed_chunks=sum(one.answer["stats"]["resumed_chunks"] for one in moved),
        chunks=sum(len(one.answer["stats"]["chunks"]) for one in ended),
        reposted=sum(one.posts > 1 for one in accepted),
        broken=clients.broken,
        refused=clients.refused,
        unexpected=clients.unexpected,
        undisturbed=spread([spent for one, spent in latencies if one not in moved]),
        disturbed=spread([spent for one, spent in latencies if one in moved]),
    )


async def _is_whole(clients: Clients, one: Accepted) -> bool:
    arrays = await _frames(clients, one.rollout_id)
    return arrays is not None and {len(array) for array in arrays.values()} == {one.answer["frames"]}


async def _frames(clients: Clients, rollout_id: str) -> dict[str, Any] | None:
    response = await clients.get(f"/v1/rollouts/{rollout_id}/frames.npz")
    if response.status_code != 200:
        return None
    with np.load(io.BytesIO(response.content), allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


async def _listed(clients: Clients) -> list[str]:
    """Ids of all rollouts, as they are listed."""
    ids: list[str] = []
    while True:
        after = f"&after={ids[-1]}" if ids else ""
        page = (await clients.get(f"/v1/rollouts?limit={PAGE}{after}")).json()
        ids += [one["id"] for one in page["data"]]
        if not page["has_more"]:
            return ids


async def _compare(clients: Clients, moved: Sequence[Accepted]) -> list[float]:
    """PSNR of some rollouts that were taken over against an undisturbed run; 0 if even the decisions differ.

    The arithmetic of another batch rounds differently, so it is not the best possible.
    """
    found: list[float] = []
    for one in sorted(moved, key=lambda one: -one.answer["stats"]["resumed_chunks"])[:COMPARED]:
        again = await clients.post_and_wait(one.seed)
        frames = await _frames(clients, one.rollout_id)
        others = await _frames(clients, again["id"])
        same = frames is not None and others is not None and _decisions(again) == _decisions(one.answer)
        found.append(psnr_db(frames["rgb"], others["rgb"]) if same and frames and others else 0.0)
    return found


def _decisions(rollout: dict[str, Any]) -> list[str]:
    return [chunk["decisions"] for chunk in rollout["stats"]["chunks"]]
