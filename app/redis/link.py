"""The connection to Redis, and whether it is there. While it is not, calls fail at once."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as ConnectionFailed
from redis.exceptions import NoScriptError, OutOfMemoryError, ReadOnlyError, RedisError
from redis.exceptions import TimeoutError as TimedOut

from app.redis.scripts import digest_of, source_of
from app.redis.tasks import end_tasks
from app.store import StoreDown

logger = logging.getLogger(__name__)

Value: TypeAlias = str | bytes | int | float

CONNECT_SECONDS = 2.0
ANSWER_SECONDS = 5.0
"""How long Redis may take to connect and to answer, before it counts as away."""

PROBE_SECONDS = 0.5
"""Between two looks whether it is back."""

AWAY = (ConnectionFailed, TimedOut, ReadOnlyError, OSError)
"""Errors of a Redis that cannot be used now: away, loading, or no longer the primary."""


class Link:
    """Calls Redis.

    Args:
        url: of the server.
        prefix: first argument of every script.
        told: called with whether it is there, whenever that changes.
    """

    def __init__(self, url: str, prefix: str, told: Callable[[bool], None]) -> None:
        self.client: Redis = Redis.from_url(
            url,
            protocol=2,
            socket_connect_timeout=CONNECT_SECONDS,
            socket_timeout=ANSWER_SECONDS,
            health_check_interval=15,
            retry=Retry(NoBackoff(), 0),
        )
        self.prefix, self._told = prefix, told
        self._healed: list[Callable[[], Awaitable[None]]] = []
        self._prober: asyncio.Task[None] | None = None
        self._silent = False
        self.up = False
        self.up_since: float | None = None
        self.outages = 0

    async def start(self) -> None:
        """Look whether Redis is there, and go on looking whenever it is not."""
        self._told(False)
        await self._probe()
        self._prober = asyncio.create_task(self._keep_probing())

    async def close(self) -> None:
        """Let go of all connections."""
        if self._prober is not None:
            await end_tasks([self._prober])
        try:
            await self.client.aclose()
        except AWAY as error:
            logger.debug("a connection to Redis was gone already: %s", error)

    def when_healed(self, act: Callable[[], Awaitable[None]]) -> None:
        """Have something done whenever Redis is back."""
        self._healed.append(act)

    async def run(self, name: str, *arguments: Value) -> Any:
        """Run one of the scripts.

        Raises:
            StoreDown: Redis is away or has no memory left.
        """
        sent = [digest_of(name), 1, f"{self.prefix}work", self.prefix, *arguments]
        try:
            return await self.call("EVALSHA", *sent)
        except NoScriptError:
            return await self.call("EVAL", source_of(name), *sent[1:])

    async def call(self, *command: Value) -> Any:
        """Send one command.

        Raises:
            StoreDown: Redis is away or has no memory left.
        """
        if not self.up:
            raise StoreDown
        try:
            return await self._send(command)
        except AWAY as error:
            self._lost(error)
            raise StoreDown from error
        except OutOfMemoryError as error:
            logger.error("Redis has no memory left: %s", error)
            raise StoreDown from error

    def steady(self, seconds: float) -> bool:
        """False for a while after an outage, in which the others have to come back as well."""
        since = self.up_since
        return since is not None and (not self.outages or time.monotonic() - since >= seconds)

    async def _send(self, command: Sequence[Value]) -> Any:
        """Send a command; once more over a new connection if the old one had been closed while it was idle.

        That may run it twice, which every script and command here can bear.
        """
        try:
            return await self.client.execute_command(*command)
        except ConnectionFailed as error:
            logger.debug("a connection to Redis is replaced: %s", error)
            await self.client.connection_pool.disconnect(inuse_connections=False)
            return await self.client.execute_command(*command)

    def _lost(self, error: Exception) -> None:
        if self.up:
            logger.error("Redis is away: %s", error)
            self.up, self.up_since = False, None
            self.outages += 1
            self._told(False)

    async def _keep_probing(self) -> None:
        while True:
            await asyncio.sleep(PROBE_SECONDS)
            if not self.up:
                await self._probe()

    async def _probe(self) -> None:
        try:
            await self.client.execute_command("PING")
        except (RedisError, OSError) as error:
            if not self._silent:
                logger.warning("Redis cannot be used: %s", error)
            self._silent = True
            return
        self._silent = False
        self.up, self.up_since = True, time.monotonic()
        self._told(True)
        logger.info("Redis is there")
        for act in self._healed:
            try:
                await act()
            except StoreDown:
                return
            except Exception:
                logger.exception("something could not be done after Redis came back")


def texts(values: Sequence[bytes]) -> list[str]:
    """Answers that are text."""
    return [value.decode() for value in values]
