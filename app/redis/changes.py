"""Hearing of what other processes do. Messages may be lost: whoever waits looks from time to time as well."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from app.redis.keys import Keys
from app.redis.link import AWAY, PROBE_SECONDS, Link
from app.redis.tasks import end_tasks

logger = logging.getLogger(__name__)

LISTEN_SECONDS = 1.0


class Changes:
    """Listens to what is published.

    Args:
        ended: told of rollouts that somebody ended, or that may have been ended unheard: ``None`` for any.
        news: told when there is work to take.
    """

    def __init__(
        self, link: Link, keys: Keys, ended: Callable[[str | None], None], news: Callable[[], None]
    ) -> None:
        self._link, self._keys = link, keys
        self._ended, self._news = ended, news
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._listen())

    async def close(self) -> None:
        if self._task is not None:
            await end_tasks([self._task])

    @contextmanager
    def hearing(self, rollout_id: str) -> Iterator[asyncio.Event]:
        """An event that is set whenever the rollout changes."""
        event = asyncio.Event()
        self._waiting[rollout_id].add(event)
        try:
            yield event
        finally:
            self._waiting[rollout_id].discard(event)
            if not self._waiting[rollout_id]:
                del self._waiting[rollout_id]

    async def _listen(self) -> None:
        while True:
            if self._link.up:
                try:
                    await self._follow()
                except AWAY as error:
                    logger.warning("nothing is heard of other servers for now: %s", error)
                except Exception:
                    logger.exception("nothing is heard of other servers for now")
            await asyncio.sleep(PROBE_SECONDS)

    async def _follow(self) -> None:
        """Hand on messages until the connection ends."""
        keys = self._keys
        async with self._link.client.pubsub() as channel:
            await channel.subscribe(keys.changes, keys.ended, keys.news)
            self._missed()
            while True:
                message = await channel.get_message(ignore_subscribe_messages=True, timeout=LISTEN_SECONDS)
                if message is not None:
                    self._hear(message["channel"].decode(), message["data"].decode())

    def _hear(self, channel: str, rollout_id: str) -> None:
        if channel == self._keys.news:
            self._news()
        elif channel == self._keys.ended:
            self._ended(rollout_id)
        else:
            for event in self._waiting.get(rollout_id, ()):
                event.set()

    def _missed(self) -> None:
        """Anything may have happened before somebody listened."""
        self._news()
        self._ended(None)
        for events in self._waiting.values():
            for event in events:
                event.set()
