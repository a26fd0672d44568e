"""Work on behalf of a client that may go away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Request
from starlette.types import Receive

from app.errors import ApiError, Unavailable
from app.rollouts import RolloutService
from app.store import RolloutRecord


async def _nothing() -> None:
    pass


@asynccontextmanager
async def attending(
    record: RolloutRecord,
    rollouts: RolloutService,
    on_abandoned: Callable[[], Awaitable[None]] = _nothing,
) -> AsyncIterator[None]:
    """Count as a client of a rollout; the last one that goes away takes a synchronous rollout with it.

    Args:
        record: of the rollout.
        rollouts: know whether anybody else waits.
        on_abandoned: called before a rollout that nobody waits for any more is cancelled.
    """
    try:
        with rollouts.waiting(record):
            yield
    finally:
        if rollouts.abandoned(record):
            await on_abandoned()
            await rollouts.cancel(record)


async def until_gone(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Run ``work`` to its end, or until the client has closed the connection.

    Args:
        receive: of a request whose body has been read.
        work: is cancelled when the client goes.
    """
    working = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        working.cancel()
        await asyncio.wait({working})
    if not working.cancelled():
        working.result()


async def wait_for_end(
    record: RolloutRecord,
    request: Request,
    rollouts: RolloutService,
    on_abandoned: Callable[[], Awaitable[None]] = _nothing,
) -> None:
    """Wait for the end of a rollout as one of its clients: :func:`attending`.

    Raises:
        ApiError: 409, the client has closed the connection.
        Unavailable: the server ends before the rollout has.
    """
    async with attending(record, rollouts, on_abandoned):
        await until_gone(request.receive, rollouts.wait(record))
    if record.live and rollouts.draining:
        message = "the server is shutting down; the rollout goes on elsewhere"
        raise Unavailable("draining", message, retry_after=5)
    if record.status == "cancelled" and rollouts.draining:
        message = "the server is shutting down and has cancelled the rollout; send it again"
        raise Unavailable("draining", message, retry_after=5)
    if record.live:
        raise ApiError(409, "client_closed_request", "the client closed the connection")


async def _disconnected(receive: Receive) -> None:
    """Return when the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
