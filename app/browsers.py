"""What browsers are told and asked: security headers on every answer, and no pages of other origins."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.auth import is_api
from app.errors import error_response

HEADERS: Mapping[str, str] = MappingProxyType(
    {
        "Content-Security-Policy": "default-src 'none'; img-src 'self'; media-src 'self'; "
        "style-src 'unsafe-inline'; frame-ancestors 'none'",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
)
"""On whatever says nothing else: an artifact that is opened in a browser is shown, and runs nothing."""

METHODS = ("GET", "POST", "PATCH", "DELETE")
ASKED = (
    "Accept",
    "Authorization",
    "Content-Type",
    "Idempotency-Key",
    "Last-Event-ID",
    "Prefer",
    "X-Request-ID",
)
TOLD = (
    "Content-Disposition",
    "Location",
    "Preference-Applied",
    "Retry-After",
    "X-Depth-Scale",
    "X-Inference-Time-S",
    "X-Request-ID",
    "X-Rollout-ID",
    "X-Skip-Ratio",
    "X-Video-ID",
)
"""Headers that pages of the named origins may send, and those that they may read."""

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


class SecurityHeadersMiddleware:
    """Adds :data:`HEADERS` to answers that do not have them."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, send_with_headers)


class OriginMiddleware:
    """Refuses what pages of other origins ask of the API with 403.

    A browser sends their requests although it keeps the answers from them: they would use what the browser
    may reach, such as a server without keys on the same machine.

    Args:
        allowed: origins that may.
    """

    def __init__(self, app: ASGIApp, allowed: Collection[str]) -> None:
        self.app = app
        self._allowed = frozenset(allowed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not is_api(scope) or not self._foreign(Headers(scope=scope)):
            await self.app(scope, receive, send)
            return
        response = error_response(
            scope["state"]["request_id"],
            403,
            "foreign_origin",
            "pages of another origin may not use this server; an operator can allow them",
            headers={"Connection": "close"},
        )
        await response(scope, receive, send)

    def _foreign(self, headers: Headers) -> bool:
        origin = headers.get("origin")
        if origin is None or origin.lower() in self._allowed:
            return False
        return not same_origin(origin, headers.get("host", ""))
