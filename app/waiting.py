"""Waiting for a rollout on behalf of a client that may go away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from fastapi import Request

from app.errors import ApiError
from app.rollouts import RolloutService
from app.store import RolloutRecord


async def _nothing() -> None:
    pass


async def wait_for_end(
    record: RolloutRecord,
    request: Request,
    rollouts: RolloutService,
    on_abandoned: Callable[[], Awaitable[None]] = _nothing,
) -> None:
    """Wait for the end; the last client that goes away takes a synchronous rollout with it.

    Args:
        record: of the rollout.
        request: of the client, whose body has been read.
        rollouts: know whether anybody else waits.
        on_abandoned: called before a rollout that nobody waits for any more is cancelled.

    Raises:
        ApiError: 409, the client has closed the connection.
    """
    finished = asyncio.create_task(rollouts.wait(record))
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({finished, gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        finished.cancel()
        await asyncio.wait({finished})
        if rollouts.abandoned(record):
            await on_abandoned()
            await rollouts.cancel(record)
    if record.live:
        raise ApiError(409, "client_closed_request", "the client closed the connection")


async def _disconnected(request: Request) -> None:
    """Return when the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
