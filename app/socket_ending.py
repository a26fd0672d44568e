"""Why a WebSocket to a session ends, and how its client is told."""

from __future__ import annotations

from asyncio import timeout
from contextlib import suppress

from starlette.websockets import WebSocket, WebSocketDisconnect

GOING_AWAY = 1001
POLICY_VIOLATION = 1008
SERVER_ERROR = 1011
TAKEN_OVER = 4409
SESSION_GONE = 4410

CLOSE_SECONDS = 2.0
"""How long a client that does not read may keep a socket from being closed."""


class Ending(Exception):
    """The socket is at its end.

    Args:
        code: to close it with; ``None`` if the client has gone already.
        reason: for people.
    """

    def __init__(self, code: int | None, reason: str = "") -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


def first_ending(group: BaseExceptionGroup[Ending]) -> Ending:
    """One of the reasons to end, if there are several."""
    error = group.exceptions[0]
    return error if isinstance(error, Ending) else first_ending(error)


async def close(websocket: WebSocket, ending: Ending) -> None:
    """Close a socket as its ending says."""
    if ending.code is None:
        return
    with suppress(TimeoutError, WebSocketDisconnect, RuntimeError):  # the client may be gone by now
        async with timeout(CLOSE_SECONDS):
            await websocket.close(ending.code, ending.reason)
