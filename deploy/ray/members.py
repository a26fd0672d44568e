"""Which replicas there are, what each has loaded, and which of them holds a session. Kept in Redis."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from app.redis.link import Link, texts
from app.store import StoreDown

logger = logging.getLogger(__name__)

HOLD_SECONDS = 86_400
"""How long it is remembered who holds a session, from its latest request on."""

TOUCH_SECONDS = 600.0
"""Least time between two renewals of that."""

MAX_TOUCHES = 10_000
BEATS = 5
"""Signs of life in the time after which a silent replica is taken for dead."""


@dataclass(frozen=True)
class Status:
    """What a replica says of itself.

    Attributes:
        warm: models that it has loaded.
        room: how many more rollouts it could compute at once; 0 or less if it takes none.
    """

    warm: tuple[str, ...]
    room: int


@dataclass(frozen=True)
class Member:
    """A replica, as the others see it.

    Attributes:
        name: of the replica.
        url: where it listens to the others.
        status: as it was a moment ago.
    """

    name: str
    url: str
    status: Status


class Members:
    """The replicas that share a Redis, seen from one of them.

    Args:
        link: to Redis.
        name: of this replica.
        status: of this replica, now.
        silence_seconds: after which a replica is taken for dead.
    """

    def __init__(self, link: Link, name: str, status: Callable[[], Status], silence_seconds: float) -> None:
        self._link, self.name, self._status = link, name, status
        self._silence_seconds = silence_seconds
        self.url, self.token = "", ""
        self._others: dict[str, Member] = {}
        self._touched: dict[str, float] = {}
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    async def start(self, url: str) -> None:
        """Tell the others of this replica from now on.

        Raises:
            StoreDown: Redis cannot be reached.
        """
        self.url = url
        await self._link.call("SET", self._key("token"), secrets.token_urlsafe(32), "NX")
        self.token = (await self._link.call("GET", self._key("token"))).decode()
        await self._beat()
        self._task = asyncio.create_task(self._keep_beating())

    async def close(self) -> None:
        """Send nobody here any more."""
        self._closed = True  # a cancellation that meets the end of a call may get lost in it
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        try:
            await self._link.call("DEL", self._key(f"replica:{self.name}"))
            await self._link.call("SREM", self._key("replicas"), self.name)
        except StoreDown:
            logger.warning("Redis is away; the others will find out by themselves that this replica ends")

    @property
    def others(self) -> list[Member]:
        """The other replicas, those with most room first."""
        return sorted(self._others.values(), key=lambda member: -member.status.room)

    async def look(self) -> None:
        """See who is there now.

        Raises:
            StoreDown: nobody knows.
        """
        names = texts(await self._link.call("SMEMBERS", self._key("replicas")))
        names = [name for name in names if name != self.name]
        values = await self._link.call("MGET", *(self._key(f"replica:{n}") for n in names)) if names else []
        found = dict(zip(names, values, strict=True))
        self._others = {name: _member(name, value) for name, value in found.items() if value is not None}
        dead = [name for name, value in found.items() if value is None]
        if dead:
            await self._link.call("SREM", self._key("replicas"), *dead)

    async def find(self, name: str) -> Member | None:
        """The replica with this name, if it lives and is not this one.

        Raises:
            StoreDown: nobody knows.
        """
        if name not in self._others:
            await self.look()
        return self._others.get(name)

    async def hold(self, session_id: str, owner: str) -> None:
        """Note that a session is held here."""
        self._touched.pop(session_id, None)
        self._touched[session_id] = time.monotonic()
        while len(self._touched) > MAX_TOUCHES:
            del self._touched[next(iter(self._touched))]
        value = f"{self.name} {owner}"
        await self._link.call("SET", self._key(f"holder:{session_id}"), value, "EX", HOLD_SECONDS)

    async def touch(self, session_id: str, owner: str) -> None:
        """Remember for longer that a session is held here."""
        if time.monotonic() - self._touched.get(session_id, float("-inf")) > TOUCH_SECONDS:
            await self.hold(session_id, owner)

    async def holder(self, session_id: str, owner: str) -> str | None:
        """Name of the replica that holds an owner's session, or did; ``None`` if there is none.

        Raises:
            StoreDown: nobody knows.
        """
        value = await self._link.call("GET", self._key(f"holder:{session_id}"))
        name, _, whose = (value or b"").decode().partition(" ")
        return name if name and whose == owner else None

    def _key(self, name: str) -> str:
        return f"{self._link.prefix}ray:{name}"

    async def _keep_beating(self) -> None:
        while not self._closed:
            await asyncio.sleep(self._silence_seconds / BEATS)
            try:
                await self._beat()
            except StoreDown:
                logger.debug("no sign of life while Redis is away")
            except Exception:
                logger.exception("no sign of life could be given")

    async def _beat(self) -> None:
        status = self._status()
        value = json.dumps({"url": self.url, "warm": status.warm, "room": status.room})
        span = int(1000 * self._silence_seconds)
        await self._link.call("SET", self._key(f"replica:{self.name}"), value, "PX", span)
        await self._link.call("SADD", self._key("replicas"), self.name)
        await self.look()


def _member(name: str, value: bytes) -> Member:
    said = json.loads(value)
    return Member(name, said["url"], Status(tuple(said["warm"]), said["room"]))
