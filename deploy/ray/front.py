"""Decides for each request whether this replica answers it or another one does.

Stands between the app's middleware and its routes: what comes here is authenticated, has an id, and its
body has been read and measured. A request that was passed on once stays where it is.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.auth import PASSED_ON
from app.dependencies import Services
from app.errors import ApiError, error_response
from app.store import StoreDown
from deploy.ray.forward import Forwarder, PeerGone, lost
from deploy.ray.members import Member, Members
from deploy.ray.merge import Merger

logger = logging.getLogger(__name__)

SAFE = ("GET", "HEAD")
MOST_OTHERS = 4
"""Replicas that are asked in turn for what this one cannot answer now."""


class FrontMiddleware:
    """Sends requests where they belong.

    Args:
        services: of this replica's app.
        members: the other replicas.
        forwarder: connections to them.
    """

    def __init__(self, app: ASGIApp, services: Services, members: Members, forwarder: Forwarder) -> None:
        self.app = app
        self._services, self._members, self._forwarder = services, members, forwarder
        self._merger = Merger(members, forwarder)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        parts = scope.get("path", "").strip("/").split("/")
        if scope["type"] not in ("http", "websocket") or parts[0] != "v1" or len(parts) < 2:
            await self.app(scope, receive, send)
            return
        try:
            await self._answer(parts[1:], scope, receive, send)
        except ApiError as error:
            request_id = scope["state"]["request_id"]
            response = error_response(
                request_id, error.status, error.code, error.message, error.param, error.headers
            )
            await response(scope, receive, send)

    async def _answer(self, parts: list[str], scope: Scope, receive: Receive, send: Send) -> None:
        kind, rest = parts[0], parts[1:]
        if PASSED_ON in scope["state"]:
            await self._here(scope, receive, send)
        elif kind == "sessions" and rest and rest != ["step"]:
            await self._at_holder(rest[0], scope, receive, send)
        elif scope["type"] == "http":
            await self._http(kind, rest, scope, receive, send)
        else:
            await self._here(scope, receive, send)

    async def _here(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Have this replica answer."""
        if scope["path"].startswith("/v1/sessions"):
            send = self._noting_sessions(scope, send)
        await self.app(scope, receive, send)

    async def _http(self, kind: str, rest: list[str], scope: Scope, receive: Receive, send: Send) -> None:
        body = await _read(receive)
        method, others = scope["method"], self._members.others
        if kind == "sessions" and method == "GET" and others:
            if await self._merger.list_sessions(scope, receive, send):
                return
        elif kind == "sessions" and rest == ["step"] and method == "POST":
            if await self._merger.take_steps(scope, body, self._where, receive, send):
                return
        places: list[Member | None] = [None]
        if kind == "models" and rest:
            places = [*self._better(rest[0])[:1], None]
        elif kind in ("rollouts", "videos", "sessions") and method == "POST":
            better = self._better(self._model_of(body))[:1]
            roomy = [member for member in others if member.status.room > 0 and member not in better]
            places = [*better, None, *roomy[:1]]
        elif method in SAFE:
            places = [None, *others[:MOST_OTHERS]]
        await self._try(places, scope, body, receive, send)

    async def _try(
        self, places: Sequence[Member | None], scope: Scope, body: bytes, receive: Receive, send: Send
    ) -> None:
        """Have a request answered by the first of some places that does not say 503; ``None`` is here."""
        for number, place in enumerate(places, 1):
            held = _Held(send, hold=number < len(places))
            try:
                if place is None:
                    await self._here(scope, _replay(body, receive), held)
                else:
                    await self._forwarder.http(place, scope, body, receive, held)
            except PeerGone:
                held.refused = True
            if not held.refused:
                return
        raise lost()

    async def _at_holder(self, session_id: str, scope: Scope, receive: Receive, send: Send) -> None:
        owner = scope["state"]["key"].name
        body = await _read(receive) if scope["type"] == "http" else b""
        for _ in range(2):  # once more if its replica has just ended
            place = await self._where(session_id, owner)
            try:
                if place is None:
                    http = scope["type"] == "http"
                    await self._here(scope, _replay(body, receive) if http else receive, send)
                elif scope["type"] == "websocket":
                    await self._forwarder.websocket(place, scope, receive, send)
                else:
                    await self._forwarder.http(place, scope, body, receive, send)
                return
            except PeerGone:
                await self._members.look()
        raise lost()

    async def _where(self, session_id: str, owner: str) -> Member | None:
        """The replica that holds a session; ``None`` for this one, which says so if there is no such session.

        Raises:
            ApiError: 410, its replica has ended, and the session with it.
        """
        sessions, members = self._services.sessions, self._members
        try:
            await sessions.store.find(session_id, owner)
        except ApiError as error:
            if error.status != 404:
                return None
        else:
            await self._note(members.touch(session_id, owner))
            return None
        name = await members.holder(session_id, owner)
        if name is None or name == members.name:
            return None
        member = await members.find(name)
        if member is not None:
            return member
        try:
            await sessions.find(session_id, owner)  # brings it back here if it was written down
        except ApiError as error:
            if error.status != 404:
                raise
            message = f"session {session_id!r} is gone: the replica that held it has ended; begin another one"
            raise ApiError(410, "session_gone", message) from None
        await self._note(members.hold(session_id, owner))
        return None

    def _better(self, model_id: str | None) -> list[Member]:
        """Replicas that have loaded a model which this one has not, and have room for it."""
        known = {hosted.id: hosted for hosted in self._services.models.all()}
        if model_id not in known or known[model_id].status in ("warm", "loading"):
            return []
        return [one for one in self._members.others if model_id in one.status.warm and one.status.room > 0]

    def _model_of(self, body: bytes) -> str | None:
        """The model that a body names, if there is a choice."""
        if len(self._services.models.all()) < 2:
            return None
        try:
            named = json.loads(body)
        except (ValueError, RecursionError):
            return None  # a form, or what the routes will refuse
        model = named.get("model") if isinstance(named, dict) else None
        return model if isinstance(model, str) else None

    def _noting_sessions(self, scope: Scope, send: Send) -> Send:
        """Let the others know of a session that is opened here, before its client can ask for it."""

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 201:
                place = Headers(raw=message["headers"]).get("location", "")
                session_id = place.removeprefix("/v1/sessions/")
                await self._note(self._members.hold(session_id, scope["state"]["key"].name))
            await send(message)

        return noting

    async def _note(self, noting: Awaitable[None]) -> None:
        try:
            await noting
        except StoreDown:
            logger.warning("Redis is away; the other replicas do not know where a session is")


class _Held:
    """A client's ``send`` that keeps an answer of 503 back.

    Args:
        hold: False to let it pass.

    Attributes:
        refused: whether there was one.
    """

    def __init__(self, send: Send, *, hold: bool) -> None:
        self._send, self._hold = send, hold
        self.refused = False

    async def __call__(self, message: Message) -> None:
        if self._hold and message["type"] == "http.response.start" and message["status"] == 503:
            self.refused = True
        if not self.refused:
            await self._send(message)


async def _read(receive: Receive) -> bytes:
    """A body, which has been read and measured before."""
    parts: list[bytes] = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body", False):
            return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A receive function that hands out a body first."""
    waiting = [body]

    async def replayed() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return replayed
