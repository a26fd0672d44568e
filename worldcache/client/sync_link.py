"""Requests and pauses for ordinary code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TypeVar

import httpx

from worldcache.client.exchange import Exchange, Operation, Pause, Reply, Request
from worldcache.client.operations import Listing

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


class Link:
    """Does what operations ask for."""

    def __init__(self, exchange: Exchange, http: httpx.Client, sleep: Callable[[float], None]) -> None:
        self.exchange, self._http, self.sleep = exchange, http, sleep

    def run(self, operation: Operation[ResultT]) -> ResultT:
        """Drive an operation to its end."""
        try:
            step = next(operation)
            while True:
                try:
                    reply = self._do(step)
                except httpx.RequestError as error:
                    step = operation.throw(error)
                else:
                    step = operation.send(reply)
        except StopIteration as end:
            result: ResultT = end.value
            return result

    def items(self, listing: Listing[ItemT]) -> Iterator[ItemT]:
        """What is on a list, a page requested when it is needed."""
        while listing.more:
            yield from self.run(listing.next_page())

    def open(self, request: Request) -> AbstractContextManager[httpx.Response]:
        """A response that is still to be read."""
        return self._http.stream(**self.exchange.arguments(request))

    def _do(self, step: Request | Pause) -> Reply | None:
        if isinstance(step, Pause):
            self.sleep(step.seconds)
            return None
        response = self._http.request(**self.exchange.arguments(step))
        return Reply(response.status_code, response.headers, response.content)
