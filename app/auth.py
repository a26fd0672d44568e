"""API keys: who may use ``/v1/*``, and whose a rollout is."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Callable
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import error_response
from app.keys import ApiKey, KeyRing
from app.ratelimit import RateLimiter

ANYONE = "anyone"
"""The owner of everything while no keys are configured."""

SUBPROTOCOL = "worldcache"
"""What a WebSocket speaks, for clients that offer subprotocols."""

KEY_SUBPROTOCOL = "bearer."
"""Begins the subprotocol with which a browser, which cannot set headers, presents its key."""

PASSED_ON = "passed_on"
"""In the state of a request that another server has passed on, which has counted it."""


@dataclass(frozen=True)
class Caller:
    """Where a request comes from.

    Attributes:
        owner: who may see what it makes.
        client: who takes turns with others: the owner, or an address while nobody needs a key.
        arrived: by ``time.monotonic()``.
        models: that it may use; ``None`` for all.
    """

    owner: str
    client: str
    arrived: float
    models: frozenset[str] | None = None


ANYONES_KEY = ApiKey(ANYONE, (), operator=True)
"""What may be done while no key is asked for."""


def presented_key(authorization: str, keys: KeyRing) -> ApiKey | None:
    """The key that an ``Authorization`` header stands for, ``None`` if it opens nothing."""
    if not keys.needed:
        return ANYONES_KEY
    scheme, _, credentials = authorization.partition(" ")
    found = keys.find(credentials.strip().encode("utf-8", "surrogateescape"))
    return found if scheme.lower() == "bearer" else None


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
    """Answers 401 on ``/v1/*`` without a valid key, 429 beyond the key's rate, before the body is read.

    Args:
        keys: that open the server.
        limiter: counts the requests of keys that have a rate.
        refused: told of the code of a refusal because of the rate.
    """

    def __init__(
        self, app: ASGIApp, keys: KeyRing, limiter: RateLimiter, refused: Callable[[str], None]
    ) -> None:
        self.app = app
        self._keys, self._limiter, self._refused = keys, limiter, refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not is_api(scope):
            await self.app(scope, receive, send)
            return
        key = presented_key(_authorization(scope), self._keys)
        if key is None:
            response = error_response(
                scope["state"]["request_id"],
                401,
                "unauthorized",
                "a valid API key is needed; send it as Authorization: Bearer KEY",
                headers={"WWW-Authenticate": "Bearer", "Connection": "close"},
            )
            await response(scope, receive, send)
            return
        counted = key.rate is not None and PASSED_ON not in scope["state"]
        wait = await self._limiter.take(key.name, key.rate) if counted and key.rate is not None else 0.0
        if key.rate is not None and wait:
            self._refused("rate_limited")
            response = error_response(
                scope["state"]["request_id"],
                429,
                "rate_limited",
                f"this key may send {key.rate.per_minute:g} requests a minute; wait {wait:.1f} s",
                headers={"Retry-After": str(math.ceil(wait)), "Connection": "close"},
            )
            await response(scope, receive, send)
            return
        scope["state"]["key"] = key
        await self.app(scope, receive, send)


def is_api(scope: Scope) -> bool:
    """Whether a connection asks for something of the API, and not for a page or a health check."""
    return scope["type"] in ("http", "websocket") and f"{scope['path']}/".startswith("/v1/")
