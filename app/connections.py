"""What a connection may cost: time for the headers of a request, size of them, time in which nothing is read.

The server below the app has no such limits of its own. Bodies are limited in ``middleware.py``, WebSockets by
their pings.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.errors import NO_HEADERS, error_body
from app.middleware import new_request_id

MAX_HEAD_BYTES = 64 * 1024
"""Longest request line and headers together."""

MIN_READ_RATE = 512
"""Bytes a second that a client must read of an answer that waits for it."""

_REASONS = {
    400: "Bad Request",
    408: "Request Timeout",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}


class ConnectionGuard:
    """The limits of all connections of one server.

    Args:
        header_seconds: for the headers of a request, from its first byte or from the connection's beginning.
        stall_seconds: after which a client that reads too slowly is disconnected.
        max_connections: that may be open. Further ones push out those that wait for a request, the oldest
            first; where every connection is at work, they are refused.
    """

    def __init__(self, *, header_seconds: float, stall_seconds: float, max_connections: int) -> None:
        self.header_seconds, self.stall_seconds = header_seconds, stall_seconds
        self._max_connections = max_connections
        self._waiting: dict[GuardedProtocol, None] = {}

    def protocol(self, **options: Any) -> GuardedProtocol:
        """A connection's protocol, as the server asks for it."""
        return GuardedProtocol(self, **options)

    def admit(self, protocol: GuardedProtocol) -> bool:
        """Whether there is room for a connection that was just made; others may be closed for it."""
        if len(protocol.connections) <= self._max_connections:
            return True
        oldest = next(iter(self._waiting), None)
        if oldest is None:
            return False
        oldest.drop()
        return True

    def wait(self, protocol: GuardedProtocol) -> None:
        """It waits for a request from now on."""
        self._waiting.pop(protocol, None)
        self._waiting[protocol] = None

    def stop_waiting(self, protocol: GuardedProtocol) -> None:
        """It has a request, or is gone."""
        self._waiting.pop(protocol, None)


class GuardedProtocol(HttpToolsProtocol):
    """The server's protocol for HTTP with limits.

    Args:
        guard: has the limits.
        options: of the protocol.
    """

    def __init__(self, guard: ConnectionGuard, **options: Any) -> None:
        self._guard = guard
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        super().__init__(**options)

    @property
    def _busy(self) -> bool:
        """Whether an answer is on its way."""
        return self.cycle is not None and not self.cycle.response_complete

    def drop(self) -> None:
        """Close the connection at once."""
        self._end_waiting()
        self.connections.discard(self)
        self.transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self._guard.admit(self):
            self._begin_waiting()
        else:
            message = "the server has too many connections; try again later"
            self._refuse(503, "too_many_connections", message, {"Retry-After": "1"})

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_waiting()
        self._stop_watching()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self._head_timer is None:
            return
        self._head_bytes += len(data)
        if self._head_bytes > MAX_HEAD_BYTES:
            message = f"the request line and the headers are longer than {MAX_HEAD_BYTES} bytes"
            self._refuse(431, "headers_too_large", message)

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "invalid_request", "this is no HTTP request that the server can read")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if not self._busy:  # what comes ahead of its turn has the time that the answer before it takes
            self._begin_waiting()

    def on_headers_complete(self) -> None:
        self._end_waiting()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing() or self.transport.get_write_buffer_size():
            self._watch()
        elif not self._busy:
            self._guard.wait(self)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_watching()

    def _begin_waiting(self) -> None:
        self._end_waiting()
        self._head_bytes = 0
        self._head_timer = self.loop.call_later(self._guard.header_seconds, self._out_of_time)
        self._guard.wait(self)

    def _end_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        self._guard.stop_waiting(self)

    def _out_of_time(self) -> None:
        message = f"the headers of a request must come within {self._guard.header_seconds:g} s"
        self._refuse(408, "request_timeout", message)

    def _refuse(self, status: int, code: str, message: str, headers: Mapping[str, str] = NO_HEADERS) -> None:
        """Answer in the server's place and close the connection."""
        self._end_waiting()
        if self.transport.is_closing():
            return
        body = json.dumps(error_body(code, message, None, new_request_id())).encode()
        fields = {
            "content-type": "application/json",
            "content-length": str(len(body)),
            "connection": "close",
            **headers,
        }
        lines = [f"HTTP/1.1 {status} {_REASONS[status]}", *(f"{k}: {v}" for k, v in fields.items()), "", ""]
        self.transport.write("\r\n".join(lines).encode() + body)
        self.transport.close()
        self._watch()

    def _watch(self) -> None:
        """Look from time to time whether the client reads what was written."""
        self._stop_watching()
        left = self.transport.get_write_buffer_size()
        self._stall_timer = self.loop.call_later(self._guard.stall_seconds, self._check, left)

    def _check(self, before: int) -> None:
        self._stall_timer = None
        left = self.transport.get_write_buffer_size()
        if not left:
            return
        if before - left < MIN_READ_RATE * self._guard.stall_seconds:
            self.transport.abort()
        else:
            self._watch()

    def _stop_watching(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None
