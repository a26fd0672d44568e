"""API keys: who may use ``/v1/*``, and whose a rollout is."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from urllib.parse import urlsplit

from pydantic import SecretStr
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import error_response

ANYONE = "anyone"
"""The owner of everything while no keys are configured."""

SUBPROTOCOL = "worldcache"
"""What a WebSocket speaks, for clients that offer subprotocols."""

KEY_SUBPROTOCOL = "bearer."
"""Begins the subprotocol with which a browser, which cannot set headers, presents its key."""


_DEFAULT_PORTS: Mapping[str, str] = MappingProxyType({"http": ":80", "https": ":443"})


def same_origin(origin: str, host: str) -> bool:
    """Whether a page is of the server that it talks to.

    Args:
        origin: the ``Origin`` header.
        host: the ``Host`` header; what ends TLS in front of the server may have kept the scheme to itself.
    """
    try:
        parts = urlsplit(origin.lower())
    except ValueError:
        return False
    port = _DEFAULT_PORTS.get(parts.scheme)
    if port is None or not parts.netloc:
        return False
    return parts.netloc.removesuffix(port) == host.lower().removesuffix(port)


@dataclass(frozen=True)
class Caller:
    """Where a request comes from.

    Attributes:
        owner: who may see what it makes.
        client: who takes turns with others: the owner, or an address while nobody needs a key.
        arrived: by ``time.monotonic()``.
    """

    owner: str
    client: str
    arrived: float


class ApiKeys:
    """The configured keys.

    Args:
        keys: empty if no key is asked for.
    """

    def __init__(self, keys: Sequence[SecretStr]) -> None:
        self._keys = tuple(key.get_secret_value().encode() for key in keys)

    def owner(self, authorization: str) -> str | None:
        """The owner that an ``Authorization`` header stands for, ``None`` if it opens nothing.

        An owner is a digest of the key, so that the key itself is never stored. All keys are compared,
        each in constant time.
        """
        if not self._keys:
            return ANYONE
        scheme, _, credentials = authorization.partition(" ")
        given = credentials.strip().encode("utf-8", "surrogateescape")
        found: str | None = None
        for key in self._keys:
            if hmac.compare_digest(key, given) and scheme.lower() == "bearer":
                found = hashlib.sha256(key).hexdigest()[:32]
        return found


def _authorization(scope: Scope) -> str:
    """The ``Authorization`` header, or what stands for it among the subprotocols of a WebSocket."""
    header = Headers(scope=scope).get("authorization", "")
    if header or scope["type"] != "websocket":
        return header
    offered = [text for text in scope.get("subprotocols", ()) if text.startswith(KEY_SUBPROTOCOL)]
    return f"Bearer {_from_base64(offered[0].removeprefix(KEY_SUBPROTOCOL))}" if offered else ""


def _from_base64(text: str) -> str:
    """Text of base64url without padding; nothing if it is none."""
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        return data.decode("ascii")
    except (binascii.Error, UnicodeError):
        return ""


class AuthMiddleware:
    """Answers 401 on ``/v1/*`` without a valid key, before the body is read."""

    def __init__(self, app: ASGIApp, keys: ApiKeys) -> None:
        self.app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = scope["type"] in ("http", "websocket")
        if not asked or not f"{scope['path']}/".startswith("/v1/"):
            await self.app(scope, receive, send)
            return
        owner = self._keys.owner(_authorization(scope))
        if owner is None:
            response = error_response(
                scope["state"]["request_id"],
                401,
                "unauthorized",
                "a valid API key is needed; send it as Authorization: Bearer KEY",
                headers={"WWW-Authenticate": "Bearer", "Connection": "close"},
            )
            await response(scope, receive, send)
            return
        scope["state"]["owner"] = owner
        await self.app(scope, receive, send)
