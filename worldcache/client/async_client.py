"""The client for asyncio; :mod:`worldcache.client.sync_client` is the same for ordinary code."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Self

import httpx

from worldcache.client.async_link import AsyncLink
from worldcache.client.async_models import AsyncModels, AsyncPolicies
from worldcache.client.async_rollouts import AsyncRollouts
from worldcache.client.async_sessions import AsyncSessions
from worldcache.client.exchange import DEFAULT_TIMEOUT, DEFAULT_URL, Exchange
from worldcache.client.retries import Retries, as_retries


class AsyncClient:
    """A server, for asyncio. For one event loop.

    Args:
        base_url: of the server.
        api_key: if it wants one.
        timeout: seconds without a byte after which a connection counts as lost. A rollout that is waited for
            is silent until it has ended.
        retries: how patient to be with a server that is busy or gone, or only how many repetitions.
        http: sends the requests, and stays open when this client is closed; one of its own if left out.
        transport: of its own one.
        clock: monotonic, in seconds.
        sleep: waits for so many.
        jitter: draws from 0 to 1.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        retries: Retries | int | None = None,
        http: httpx.AsyncClient | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        exchange = Exchange(base_url, api_key, timeout, as_retries(retries), clock, jitter)
        self._close_http, self._http = http is None, http or httpx.AsyncClient(transport=transport)
        self._link = link = AsyncLink(exchange, self._http, sleep)
        self.rollouts, self.models = AsyncRollouts(link), AsyncModels(link)
        self.policies, self.sessions = AsyncPolicies(link), AsyncSessions(link)

    async def aclose(self) -> None:
        """Close the connections, after the cancellations that are under way."""
        await self._link.settle()
        if self._close_http:
            await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
