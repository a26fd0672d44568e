"""The client for ordinary code; :mod:`worldcache.client.async_client` is the same for asyncio."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Self

import httpx

from worldcache.client.exchange import DEFAULT_TIMEOUT, DEFAULT_URL, Exchange
from worldcache.client.retries import Retries, as_retries
from worldcache.client.sync_link import Link
from worldcache.client.sync_models import Models, Policies
from worldcache.client.sync_rollouts import Rollouts
from worldcache.client.sync_sessions import Sessions


class Client:
    """A server, for ordinary code. May be used by several threads.

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
        http: httpx.Client | None = None,
        transport: httpx.BaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        exchange = Exchange(base_url, api_key, timeout, as_retries(retries), clock, jitter)
        self._close_http, self._http = http is None, http or httpx.Client(transport=transport)
        link = Link(exchange, self._http, sleep)
        self.rollouts, self.models = Rollouts(link), Models(link)
        self.policies, self.sessions = Policies(link), Sessions(link)

    def close(self) -> None:
        """Close the connections."""
        if self._close_http:
            self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
