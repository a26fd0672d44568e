"""Clients that ask for asynchronous rollouts and do not give up when a server dies."""

from __future__ import annotations

import asyncio
import itertools
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from app.killtest.fleet import Replica
from app.loadtest.work import PolicyChoice, Work

LIVE = ("queued", "running")
RETRY_SECONDS = 0.2
POLL_SECONDS = 0.5


@dataclass
class Accepted:
    """A rollout that a server said 202 to.

    Attributes:
        seed: of its request.
        accepted_at, ended_at: by ``time.monotonic()``; the latter as its client saw it.
        posts: how often it was asked for, with one idempotency key.
        answer: the rollout object when it had ended.
    """

    rollout_id: str
    seed: int
    accepted_at: float
    posts: int
    ended_at: float | None = None
    answer: dict[str, Any] = field(default_factory=dict)


class Clients:
    """Ask all servers in turn.

    Args:
        choice: policy of the rollouts.
        unexpected: answers that no client should get.
    """

    def __init__(
        self, http: httpx.AsyncClient, replicas: Sequence[Replica], work: Work, choice: PolicyChoice
    ) -> None:
        self._http, self._work, self._choice = http, work, choice
        self._urls: Iterator[str] = itertools.cycle([replica.url for replica in replicas])
        self._seeds = itertools.count()
        self.accepted: list[Accepted] = []
        self.unexpected: list[str] = []
        self.refused = 0
        self.broken = 0

    async def keep_asking(self, until: float) -> None:
        """One client: a rollout after the other, each to its end."""
        while time.monotonic() < until:
            one = await self._post(next(self._seeds))
            if one is not None:
                self.accepted.append(one)
                await self._follow(one)

    async def get(self, path: str) -> httpx.Response:
        """An answer of any server that is there."""
        while True:
            try:
                response = await self._http.get(next(self._urls) + path)
            except httpx.TransportError:
                self.broken += 1
                await asyncio.sleep(RETRY_SECONDS)
                continue
            if response.status_code != 503:
                return response
            await asyncio.sleep(RETRY_SECONDS)

    async def post_and_wait(self, seed: int) -> dict[str, Any]:
        """The same rollout, asked for synchronously."""
        url, body = next(self._urls), self._work.body(self._choice, seed)
        response = await self._http.post(f"{url}/v1/rollouts", json=body)
        answer: dict[str, Any] = response.raise_for_status().json()
        return answer

    async def _post(self, seed: int) -> Accepted | None:
        """Ask until somebody accepts."""
        headers = {"Prefer": "respond-async", "Idempotency-Key": uuid.uuid4().hex}
        body = self._work.body(self._choice, seed)
        for posts in itertools.count(1):
            try:
                response = await self._http.post(
                    f"{next(self._urls)}/v1/rollouts", json=body, headers=headers
                )
            except httpx.TransportError:
                self.broken += 1
                await asyncio.sleep(RETRY_SECONDS)
                continue
            if response.status_code == 202:
                return Accepted(response.json()["id"], seed, time.monotonic(), posts)
            if response.status_code not in (409, 429, 503):
                self.unexpected.append(f"POST: {response.status_code} {response.text[:200]}")
                return None
            self.refused += 1
            await asyncio.sleep(RETRY_SECONDS)
        raise AssertionError

    async def _follow(self, one: Accepted) -> None:
        """Look until it has ended."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            response = await self.get(f"/v1/rollouts/{one.rollout_id}")
            if response.status_code != 200:
                self.unexpected.append(f"GET: {response.status_code} {response.text[:200]}")
                return
            answer = response.json()
            if answer["status"] not in LIVE:
                one.ended_at, one.answer = time.monotonic(), answer
                return
