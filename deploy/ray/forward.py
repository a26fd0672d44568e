"""Passes a request on to another replica, and its answer back, as they come."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable
from contextlib import suppress
from urllib.parse import quote

import httpx
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from app.auth import PASSED_ON
from app.errors import Unavailable
from deploy.ray.members import Member

CONNECT_SECONDS = 3.0
TOKEN, CLIENT, HOST = b"x-worldcache-peer", b"x-worldcache-client", b"x-worldcache-host"
"""Headers of a request that was passed on: that a replica did so, for whom, and under which host."""

OURS = frozenset((TOKEN, CLIENT, HOST))
HOP_BY_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade")
)
NORMAL, BROKEN = 1000, 1011
NEVER_SENT = {1005: NORMAL, 1006: BROKEN, 1015: BROKEN}
"""Close codes that only say what a connection came to, and what is sent in their place."""


class PeerGone(Exception):
    """The other replica cannot be reached; it has seen nothing of the request."""


class PeerMiddleware:
    """Makes a request that a replica passed on look as it came from its client.

    Args:
        token: what the replicas know each other by.
    """

    def __init__(self, app: ASGIApp, token: Callable[[], str]) -> None:
        self.app, self._token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            headers = scope["headers"]
            given = {name: value for name, value in headers if name in OURS}
            if given:
                scope = {**scope, "headers": [pair for pair in headers if pair[0] not in OURS]}
            token = self._token().encode()
            if token and hmac.compare_digest(given.get(TOKEN, b""), token):
                scope["state"] = {**scope.get("state", {}), PASSED_ON: True}
                scope["client"] = (given.get(CLIENT, b"").decode("latin-1"), 0)
                others = [pair for pair in scope["headers"] if pair[0] != b"host"]
                scope["headers"] = [*others, (b"host", given.get(HOST, b""))]
        await self.app(scope, receive, send)


class Forwarder:
    """Connections to the other replicas.

    Args:
        token: what the replicas know each other by.
    """

    def __init__(self, token: Callable[[], str]) -> None:
        self._token = token
        timeout = httpx.Timeout(None, connect=CONNECT_SECONDS)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=32)
        self._http = httpx.AsyncClient(timeout=timeout, limits=limits, trust_env=False)

    async def close(self) -> None:
        await self._http.aclose()

    async def ask(
        self, url: str, scope: Scope, method: str, path: str, body: bytes | None = None
    ) -> httpx.Response:
        """Send a request of our own in a client's name, and wait for the whole answer.

        Raises:
            httpx.TransportError: there is none.
        """
        headers = [pair for pair in self._headers(scope) if pair[0] not in (b"content-type", b"accept")]
        headers.append((b"content-type", b"application/json"))
        return await self._http.request(method, url + path, headers=headers, content=body)

    async def http(self, member: Member, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        """Pass a request on whose body has been read.

        Raises:
            PeerGone: it can be tried elsewhere.
            Unavailable: 503, the other replica ended before it answered.
        """
        passing = asyncio.create_task(self._pass_on(member, scope, body, send))
        leaving = asyncio.create_task(_until_left(receive))
        try:
            await asyncio.wait({passing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            if not passing.done():
                passing.cancel()
            await asyncio.wait({passing, leaving})
        if not passing.cancelled():
            passing.result()

    async def _pass_on(self, member: Member, scope: Scope, body: bytes, send: Send) -> None:
        url = member.url + target_of(scope)
        request = self._http.build_request(
            scope["method"], url, headers=self._headers(scope), content=body or None
        )
        try:
            answer = await self._http.send(request, stream=True)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise PeerGone(member.name) from error
        except httpx.TransportError as error:
            raise lost() from error
        try:
            headers = [
                (name.lower(), value) for name, value in answer.headers.raw if name.lower() not in HOP_BY_HOP
            ]
            await send({"type": "http.response.start", "status": answer.status_code, "headers": headers})
            async for part in answer.aiter_raw():
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            await answer.aclose()

    async def websocket(self, member: Member, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a connection on, both ways, until either side ends it.

        Raises:
            PeerGone: the other replica cannot be reached.
        """
        url = "ws" + member.url.removeprefix("http") + target_of(scope)
        skipped = (b"host", b"sec-websocket-key", b"sec-websocket-version", b"sec-websocket-extensions")
        headers = [
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in self._headers(scope)
            if name not in (*skipped, b"sec-websocket-protocol")
        ]
        try:
            connection = await connect(
                url,
                additional_headers=headers,
                subprotocols=scope.get("subprotocols") or None,
                compression=None,
                max_size=None,
                ping_interval=None,
                open_timeout=None,
                proxy=None,
                user_agent_header=None,
            )
        except InvalidStatus as refusal:
            await receive()  # the client connects
            await _refuse(scope, refusal, send)
            return
        except (OSError, InvalidHandshake) as error:
            raise PeerGone(member.name) from error
        async with connection:
            await receive()  # the client connects
            await send({"type": "websocket.accept", "subprotocol": connection.subprotocol})
            tasks = {
                asyncio.create_task(_upwards(receive, connection)),
                asyncio.create_task(_downwards(connection, send)),
            }
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
        for task in done:
            task.result()

    def _headers(self, scope: Scope) -> list[tuple[bytes, bytes]]:
        """Those of a client's request, and ours."""
        client = scope["client"][0] if scope.get("client") else ""
        dropped = HOP_BY_HOP | OURS | {b"content-length", b"host", b"x-request-id"}
        return [
            *(pair for pair in scope["headers"] if pair[0] not in dropped),
            (b"x-request-id", scope["state"]["request_id"].encode()),
            (TOKEN, self._token().encode()),
            (CLIENT, client.encode("latin-1")),
            (HOST, Headers(scope=scope).get("host", "").encode("latin-1")),
        ]


def lost() -> Unavailable:
    """The answer for a request whose replica ended under it."""
    return Unavailable("replica_lost", "the replica that had the request has ended; try again", retry_after=2)


def target_of(scope: Scope) -> str:
    """Path and query."""
    raw = scope.get("raw_path")
    path = raw.decode("latin-1").partition("?")[0] if raw else quote(scope["path"])
    query = scope.get("query_string", b"").decode("latin-1")
    return f"{path}?{query}" if query else path


async def _until_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _refuse(scope: Scope, refusal: InvalidStatus, send: Send) -> None:
    """Answer a connection as the other replica did."""
    answer = refusal.response
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": NORMAL, "reason": ""})
        return
    headers = [
        (name.lower().encode("latin-1"), text.encode("latin-1")) for name, text in answer.headers.raw_items()
    ]
    headers = [pair for pair in headers if pair[0] not in HOP_BY_HOP]
    start: Message = {"type": "websocket.http.response.start", "status": answer.status_code}
    await send({**start, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": bytes(answer.body or b"")})


async def _upwards(receive: Receive, connection: ClientConnection) -> None:
    """What the client sends."""
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            code = message.get("code") or NORMAL
            await connection.close(NEVER_SENT.get(code, code))
            return
        data = message.get("text")
        with suppress(ConnectionClosed):  # the other direction tells the client
            await connection.send(data if data is not None else message["bytes"])


async def _downwards(connection: ClientConnection, send: Send) -> None:
    """What the client is sent."""
    try:
        while True:
            data = await connection.recv()
            kind = "text" if isinstance(data, str) else "bytes"
            await send({"type": "websocket.send", kind: data})
    except ConnectionClosed:
        code = connection.close_code or NEVER_SENT[1006]
        reason = connection.close_reason or ""
        await send({"type": "websocket.close", "code": NEVER_SENT.get(code, code), "reason": reason})
