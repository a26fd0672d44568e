"""Requests and pauses for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

import httpx

from worldcache.client.exchange import Exchange, Operation, Pause, Reply, Request
from worldcache.client.operations import Listing

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


class AsyncLink:
    """Does what operations ask for."""

    def __init__(
        self, exchange: Exchange, http: httpx.AsyncClient, sleep: Callable[[float], Awaitable[None]]
    ) -> None:
        self.exchange, self._http, self.sleep = exchange, http, sleep
        self._farewells: set[asyncio.Future[None]] = set()

    async def run(self, operation: Operation[ResultT]) -> ResultT:
        """Drive an operation to its end."""
        try:
            step = next(operation)
            while True:
                try:
                    reply = await self._do(step)
                except httpx.RequestError as error:
                    step = operation.throw(error)
                else:
                    step = operation.send(reply)
        except StopIteration as end:
            result: ResultT = end.value
            return result

    async def run_to_its_end(self, operation: Operation[None]) -> None:
        """Drive an operation to its end, although whoever waits for that is cancelled, even repeatedly."""
        farewell = asyncio.ensure_future(self.run(operation))
        self._farewells.add(farewell)
        farewell.add_done_callback(self._farewells.discard)
        await asyncio.shield(farewell)

    async def settle(self) -> None:
        """Wait for the operations that nobody waits for any more."""
        if self._farewells:
            await asyncio.wait(self._farewells)

    async def items(self, listing: Listing[ItemT]) -> AsyncIterator[ItemT]:
        """What is on a list, a page requested when it is needed."""
        while listing.more:
            for item in await self.run(listing.next_page()):
                yield item

    def open(self, request: Request) -> AbstractAsyncContextManager[httpx.Response]:
        """A response that is still to be read."""
        return self._http.stream(**self.exchange.arguments(request))

    async def _do(self, step: Request | Pause) -> Reply | None:
        if isinstance(step, Pause):
            await self.sleep(step.seconds)
            return None
        response = await self._http.request(**self.exchange.arguments(step))
        return Reply(response.status_code, response.headers, response.content)
