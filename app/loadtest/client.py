"""The client of a load test: many requests on one event loop, each timed by the monotonic clock."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from enum import Enum
from typing import Any

import httpx

from app.loadtest.results import Answer
from app.loadtest.scrape import Scrape
from app.loadtest.work import PolicyChoice, Work
from worldcache.errors import InvalidInput

LIVE = ("queued", "running")

FULL = (429, 503)
"""Statuses of a server that has no room for a request."""

POLL_SECONDS = (0.2, 2.0)
"""Between two looks at an asynchronous rollout: at first, and at most, so that looking costs little."""

POLL_GROWTH = 1.5

KEEP_SECONDS = 2.0
"""Idle connections are closed before the server does, which would cost a request."""


class Outcome(Enum):
    """What became of a rollout that was to be cancelled."""

    REFUSED = "the server was full"
    FAILED = "the request or the rollout failed"
    ESCAPED = "it ended before"
    DELETED = "cancelled by DELETE"
    DISCONNECTED = "the connection was closed before an answer came"


class LoadClient:
    """Asks for rollouts.

    Args:
        http: with the server's address.
        work: what to ask for.
    """

    def __init__(self, http: httpx.AsyncClient, work: Work) -> None:
        self._http, self.work = http, work
        self._seeds = itertools.count()

    async def scrape(self) -> Scrape:
        """The server's metrics."""
        response = await self._http.get("/metrics")
        return Scrape.parse(response.raise_for_status().text)

    async def try_out(self, choice: PolicyChoice) -> None:
        """One rollout that is not measured.

        Raises:
            InvalidInput: the server does not do it; the message is the server's.
        """
        response = await self._http.post("/v1/rollouts", json=self.work.body(choice, next(self._seeds)))
        if response.status_code != 200:
            raise InvalidInput(f"{choice.label}: {_message(response)}", param="policies")
        await self._http.delete(f"/v1/rollouts/{response.json()['id']}")

    async def run(self, choice: PolicyChoice, *, later: bool = False) -> Answer:
        """One rollout, to its end.

        Args:
            choice: its policy.
            later: ask with ``Prefer: respond-async`` and poll.
        """
        body = self.work.body(choice, next(self._seeds))
        headers = {"Prefer": "respond-async"} if later else {}
        began = time.monotonic()
        try:
            response = await self._http.post("/v1/rollouts", json=body, headers=headers)
        except httpx.TransportError as error:
            return Answer(choice.label, began, time.monotonic(), 0, type(error).__name__, later=later)
        ended = time.monotonic()
        answer = Answer(
            choice.label,
            began,
            ended,
            response.status_code,
            retry_after=response.headers.get("Retry-After", "").isdecimal(),
            later=later,
            latency=ended - began,
        )
        if answer.status == 200:
            return _filled(answer, response.json())
        if answer.status == 202:
            return await self._poll(answer, response.headers["Location"])
        return answer

    async def _poll(self, answer: Answer, location: str) -> Answer:
        """Look until an accepted rollout has ended."""
        wait, longest = POLL_SECONDS
        while True:
            await asyncio.sleep(wait)
            wait = min(longest, POLL_GROWTH * wait)
            try:
                response = await self._http.get(location)
            except httpx.TransportError as error:
                return replace(answer, ended=time.monotonic(), state=type(error).__name__)
            if response.status_code != 200:
                state = f"{response.status_code} when polled"
                return replace(answer, ended=time.monotonic(), state=state)
            rollout = response.json()
            if rollout["status"] not in LIVE:
                latency = (rollout["stats"]["latency_ms"] or 0.0) / 1000
                return _filled(replace(answer, ended=time.monotonic(), latency=latency), rollout)

    async def forget(self, answers: Iterable[Answer]) -> None:
        """Remove finished rollouts, so that the server's memory does not hold their frames."""
        for answer in answers:
            if answer.rollout_id:
                await self._http.delete(f"/v1/rollouts/{answer.rollout_id}")

    async def delete(self, choice: PolicyChoice, frames: int, wait: float) -> Outcome:
        """Ask for a rollout and cancel it by DELETE after a while."""
        body = self.work.body(choice, next(self._seeds), frames)
        response = await self._http.post("/v1/rollouts", json=body, headers={"Prefer": "respond-async"})
        if response.status_code != 202:
            return Outcome.REFUSED if response.status_code in FULL else Outcome.FAILED
        await asyncio.sleep(wait)
        path = response.headers["Location"]
        rollout = (await self._http.delete(path)).raise_for_status().json()
        if "status" in rollout:
            await self._http.delete(path)
        return Outcome.DELETED if rollout.get("status") == "cancelled" else Outcome.ESCAPED

    async def disconnect(self, choice: PolicyChoice, frames: int, wait: float) -> Outcome:
        """Ask for a rollout and close the connection after a while."""
        body = self.work.body(choice, next(self._seeds), frames)
        request = asyncio.create_task(self._http.post("/v1/rollouts", json=body))
        done, _ = await asyncio.wait({request}, timeout=wait)
        if done:
            status = request.result().status_code
            if status in FULL:
                return Outcome.REFUSED
            return Outcome.ESCAPED if status == 200 else Outcome.FAILED
        request.cancel()
        await asyncio.wait({request})
        return Outcome.DISCONNECTED


@asynccontextmanager
async def connected(url: str, key: str | None) -> AsyncIterator[httpx.AsyncClient]:
    """A client that waits for as long as it takes, over as many connections as it takes."""
    async with httpx.AsyncClient(
        base_url=url,
        headers={"Authorization": f"Bearer {key}"} if key else {},
        timeout=httpx.Timeout(None, connect=30),
        limits=httpx.Limits(max_connections=None, keepalive_expiry=KEEP_SECONDS),
        trust_env=False,
    ) as http:
        yield http


async def describe(http: httpx.AsyncClient, model: str) -> dict[str, Any]:
    """A model of the server.

    Raises:
        InvalidInput: the server does not answer, or does not serve the model.
    """
    try:
        response = await http.get(f"/v1/models/{model}")
    except httpx.TransportError as error:
        raise InvalidInput(f"{http.base_url} does not answer: {error!r}", param="url") from None
    if response.status_code != 200 or response.json()["status"] != "warm":
        raise InvalidInput(
            f"{http.base_url} does not serve {model!r} (status {response.status_code})", param="model"
        )
    answer: dict[str, Any] = response.json()
    return answer


def _message(response: httpx.Response) -> str:
    """What an error response says."""
    try:
        return f"{response.status_code}, {response.json()['error']['message']}"
    except (ValueError, KeyError, TypeError):
        return f"{response.status_code}, {response.text[:200]}"


def _filled(answer: Answer, rollout: dict[str, Any]) -> Answer:
    """The answer with what the rollout object tells."""
    stats = rollout["stats"]
    return replace(
        answer,
        state=rollout["status"],
        queue=(stats["queue_ms"] or 0.0) / 1000,
        first_frame=(stats["first_frame_ms"] or 0.0) / 1000,
        rollout_id=rollout["id"],
    )
