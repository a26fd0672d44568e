"""Which sockets are open, and how all of them come to an end."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from app.session_socket import SessionSocket
from app.socket_ending import GOING_AWAY, POLICY_VIOLATION, TAKEN_OVER


class SocketRegistry:
    """The open sockets: one for each session at most."""

    def __init__(self) -> None:
        self._sockets: dict[str, SessionSocket] = {}
        self.draining = False

    def __len__(self) -> int:
        return len(self._sockets)

    async def serve(self, session_id: str, socket: SessionSocket) -> None:
        """Run a socket to its end, in place of the one that the session had."""
        if (other := self._sockets.get(session_id)) is not None:
            other.end(TAKEN_OVER, "another connection to this session took over")
        self._sockets[session_id] = socket
        try:
            await socket.run()
        finally:
            if self._sockets.get(session_id) is socket:
                del self._sockets[session_id]

    def shut_out(self, owner: str) -> None:
        """Close the sockets of somebody who has no key any more."""
        for socket in self._sockets.values():
            if socket.owner == owner:
                socket.end(POLICY_VIOLATION, "the API key is not valid any more")

    async def drain(self, seconds: float) -> None:
        """Take no more sockets, and close those that there are: when they have shown the step on its way,
        or after so many seconds."""
        self.draining = True
        sockets = list(self._sockets.values())
        for socket in sockets:
            socket.leave()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                for socket in sockets:
                    await socket.finished.wait()
        for socket in sockets:
            socket.end(GOING_AWAY, "the server is shutting down; connect again later")
