"""Runs the service with uvicorn, so that WebSockets are told before they are closed."""

from __future__ import annotations

import asyncio
import logging
import resource
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import uvicorn
from fastapi import FastAPI

from app.connections import ConnectionGuard
from app.dependencies import Services
from app.logs import hide_secrets

STARTUP_FAILURE = 3
"""Exit code of a server that could not start, as uvicorn has it."""

PING_TIMEOUT = 60.0
"""Seconds for the answer to a ping, which waits behind the frames that a slow client has not read yet."""

HURRY_SECONDS = 0.2
"""Between two looks whether somebody wants the server to end at once."""

LEAVE_SECONDS = 5.0
"""How long a WebSocket's step may go on after the server was told to stop."""

MAX_MESSAGE_BYTES = 2**20
"""Longest WebSocket message that is received at all; the app's own limit is lower and explains itself."""


class AnnouncingServer(uvicorn.Server):
    """A server that lets others act before it closes its connections.

    Args:
        before_shutdown: awaited when the server was told to stop.
    """

    def __init__(self, config: uvicorn.Config, before_shutdown: Callable[[], Awaitable[None]]) -> None:
        super().__init__(config)
        self._before_shutdown = before_shutdown

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        leaving = asyncio.ensure_future(self._before_shutdown())
        while not leaving.done() and not self.force_exit:
            await asyncio.wait({leaving}, timeout=HURRY_SECONDS)
        leaving.cancel()
        await super().shutdown(sockets)


def make_server(app: FastAPI, **options: Any) -> AnnouncingServer:
    """A server for an app of :func:`app.main.create_app`.

    Images are compressed already, so messages are not.

    Args:
        options: of :class:`uvicorn.Config`.
    """
    services: Services = app.state.services
    settings = services.settings
    leave_seconds = min(LEAVE_SECONDS, settings.drain_seconds)
    guard = ConnectionGuard(
        header_seconds=settings.header_seconds,
        stall_seconds=settings.stall_seconds,
        max_connections=settings.max_connections,
    )
    http: Any = guard.protocol  # the server takes anything that makes protocols
    config = uvicorn.Config(
        app,
        http=http,
        ws_per_message_deflate=False,
        ws_ping_timeout=PING_TIMEOUT,
        ws_max_size=MAX_MESSAGE_BYTES,
        **options,
    )
    logging.getLogger("uvicorn.error").addFilter(hide_secrets)  # at debug it writes down every header
    return AnnouncingServer(config, lambda: _leave_in_order(services, leave_seconds))


async def _leave_in_order(services: Services, leave_seconds: float) -> None:
    """Take no more work and say so; let what runs end or go elsewhere while clients can still ask for it."""
    seconds = services.settings.drain_seconds
    await asyncio.gather(
        services.sockets.drain(leave_seconds),
        services.rollouts.drain(seconds),
        services.sessions.drain(seconds),
    )


def serve(app: FastAPI, **options: Any) -> None:
    """Serve until a signal comes; SIGTERM ends the process with exit code 0.

    Args:
        options: of :class:`uvicorn.Config`.
    """
    signal.signal(signal.SIGTERM, _leave)  # uvicorn raises a signal again once it has obeyed it
    server = make_server(app, **options)
    _allow_files()
    with suppress(KeyboardInterrupt):
        server.run()
    if not server.started:
        sys.exit(STARTUP_FAILURE)


def _leave(number: int, frame: object) -> None:
    raise SystemExit(0)


def _allow_files() -> None:
    """Let this process have as many connections as the system allows it, and not a shell's usual number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):  # some systems name a limit that they do not grant
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
