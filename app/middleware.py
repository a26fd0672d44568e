"""What happens around every request, as plain ASGI: request id, duration, last resort, body limit."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import deque
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import error_response
from app.logs import log_access, logging_as
from app.metrics import Metrics

logger = logging.getLogger(__name__)

MAX_REQUEST_ID = 128
MIN_BODY_RATE = 16 * 1024
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
UNMATCHED = "unmatched"
NO_CLIENT = "unknown"


def new_request_id() -> str:
    return f"req_{uuid.uuid4().hex}"


def is_request_id(text: str) -> bool:
    """True for 1 to 128 printable ASCII characters."""
    return 0 < len(text) <= MAX_REQUEST_ID and text.isascii() and text.isprintable()


class RequestIdMiddleware:
    """Gives every request an id, the client's own if it is usable, and returns it in ``X-Request-ID``.

    Notes when it arrived, before its body is read: deadlines count from there.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if is_request_id(given) else new_request_id()
        scope.setdefault("state", {})["request_id"] = request_id
        scope["state"]["arrived"] = time.monotonic()

        async def send_with_id(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        with logging_as(request_id):
            await self.app(scope, receive, send_with_id)


class HttpMetricsMiddleware:
    """Times requests by method, route template and status; never by path, which has no bound. Logs them."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 499  # what is reported if the client leaves before there is an answer
        began = time.perf_counter()

        async def send_and_look(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_and_look)
        finally:
            method = scope["method"] if scope["method"] in METHODS else "OTHER"
            route = getattr(scope.get("route"), "path", UNMATCHED)
            seconds = time.perf_counter() - began
            self._metrics.http_time.labels(method, route, str(status)).observe(seconds)
            client = scope["client"][0] if scope.get("client") else NO_CLIENT
            log_access(method, scope["path"], route, status, seconds, client)


class LastResortMiddleware:
    """Turns an exception that nobody handled into a 500 without details, and logs it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answered = False

        async def send_and_note(message: Message) -> None:
            nonlocal answered
            answered = True
            await send(message)

        try:
            await self.app(scope, receive, send_and_note)
        except Exception:
            request_id = scope["state"]["request_id"]
            logger.exception("request %s failed", request_id)
            if answered:
                raise
            response = error_response(
                request_id, 500, "internal_error", "the server failed; quote the request id when reporting it"
            )
            await response(scope, receive, send)


class BodyLimitMiddleware:
    """Reads a request's body, refusing it with 413 when it is too long and with 408 when it comes too slowly.

    Args:
        limit: most bytes.
        seconds: that a body may take, besides a second for every ``MIN_BODY_RATE`` bytes of it.
    """

    def __init__(self, app: ASGIApp, limit: int, seconds: float) -> None:
        self.app = app
        self._limit, self._seconds = limit, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "")
        try:
            body = await self._read(receive) if not self._too_long(announced) else None
        except TimeoutError:
            message = "the body came too slowly; send it again, over a faster connection"
            await _refuse(408, "request_timeout", message, scope, receive, send)
            return
        if body is None:
            message = f"the body is longer than {self._limit} bytes; send a smaller one"
            await _refuse(413, "body_too_large", message, scope, receive, send)
            return
        await self.app(scope, _replay(body, receive), send)

    def _too_long(self, announced: str) -> bool:
        return announced.isdecimal() and int(announced[:20]) > self._limit

    async def _read(self, receive: Receive) -> list[Message] | None:
        """The messages of the body; ``None`` if it is too long.

        Raises:
            TimeoutError: it comes too slowly.
        """
        messages: list[Message] = []
        size, began = 0, asyncio.get_running_loop().time()
        while True:
            async with asyncio.timeout_at(began + self._seconds + size / MIN_BODY_RATE):
                message = await receive()
            messages.append(message)
            size += len(message.get("body", b""))
            if size > self._limit:
                return None
            if message["type"] != "http.request" or not message.get("more_body", False):
                return messages


async def _refuse(status: int, code: str, message: str, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer without reading the rest of the body, after which the connection is of no use."""
    headers = {"Connection": "close"}
    response = error_response(scope["state"]["request_id"], status, code, message, headers=headers)
    await response(scope, receive, send)


def _replay(messages: Sequence[Message], receive: Receive) -> Receive:
    """A receive function that hands out ``messages`` first."""
    waiting = deque(messages)

    async def replayed() -> Message:
        return waiting.popleft() if waiting else await receive()

    return replayed
