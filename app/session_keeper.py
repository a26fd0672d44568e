"""Snapshots of sessions that outlive their server, and sessions that come back from them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from app.auth import Caller
from app.errors import ApiError, NotFound, Unavailable
from app.schemas import SnapshotBody
from app.session_store import Session, SessionStore, unknown_session
from worldcache.errors import InvalidInput

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class KeptSession:
    """A session as it was written down.

    Attributes:
        owner, client, created_at: of the session.
        body: its snapshot.
    """

    owner: str
    client: str
    created_at: float
    body: SnapshotBody


class SnapshotStore(Protocol):
    """Keeps the latest snapshot of each session, and which server the session is at."""

    async def keep(self, session_id: str, kept: KeptSession, seconds: float) -> bool:
        """Keep a snapshot for so long; False if the session is at another server by now.

        Raises:
            StoreDown: it cannot be kept.
        """

    async def take(self, session_id: str, owner: str) -> KeptSession | None:
        """An owner's session, which is at this server from now on; ``None`` if there is none.

        Raises:
            ApiError: 409, it is at another server, which lives.
            StoreDown: nobody knows.
        """

    async def leave(self, session_id: str) -> None:
        """Let any server have the session."""

    async def remove(self, session_id: str) -> None:
        """Forget the session."""


Snapshot: TypeAlias = Callable[[Session], Awaitable[SnapshotBody]]
Restore: TypeAlias = Callable[[SnapshotBody, Caller], Awaitable[Session]]


class SessionKeeper:
    """Writes sessions down when they have changed, and brings them back when they are asked for.

    Args:
        store: of the sessions that are open here.
        snapshots: where they are kept.
        snapshot, restore: make a document of a session, and a session of a document.
        seconds: how long a snapshot is kept.
    """

    def __init__(
        self,
        store: SessionStore,
        snapshots: SnapshotStore,
        snapshot: Snapshot,
        restore: Restore,
        seconds: float,
    ) -> None:
        self._store, self._snapshots, self._seconds = store, snapshots, seconds
        self._snapshot, self._restore = snapshot, restore
        self._finding = asyncio.Lock()
        self._kept: dict[str, object] = {}
        self._silent_models: set[str] = set()

    async def write_down(self) -> None:
        """Write down those of the open sessions that have changed; close those that are elsewhere now."""
        open_ones = await self._store.all()
        for session in open_ones:
            mark = (session.state, session.cache)
            if session.closed or session.model in self._silent_models or self._kept.get(session.id) == mark:
                continue
            try:
                if await self._keep(session):
                    self._kept[session.id] = mark
                else:
                    logger.warning("session %s is at another server now", session.id)
                    await self._store.close(session)
            except InvalidInput as error:
                if error.code != "not_supported":
                    raise
                self._silent_models.add(session.model)
            except Unavailable as error:
                logger.warning("session %s is not kept for now: %s", session.id, error)
        known = {session.id for session in open_ones}
        self._kept = {name: mark for name, mark in self._kept.items() if name in known}

    async def bring_back(self, session_id: str, owner: str) -> Session:
        """Open a session of a server that has ended, where it was last written down.

        Raises:
            NotFound: there is none.
            ApiError: it is at another server, or cannot be restored here now.
        """
        async with self._finding:
            with suppress(NotFound):
                return await self._store.find(session_id, owner)  # somebody else has brought it back
            kept = await self._snapshots.take(session_id, owner)
            if kept is None:
                raise unknown_session(session_id)
            try:
                session = await self._reopen(session_id, kept)
            except BaseException:
                await self._snapshots.leave(session_id)
                raise
            logger.warning("session %s is restored at frame %d", session_id, session.frames)
            return session

    async def leave_all(self) -> None:
        """Let other servers have the sessions."""
        for session in await self._store.all():
            if session.id in self._kept:
                await self._quietly(self._snapshots.leave(session.id))

    async def remove(self, session: Session) -> None:
        """A session was closed."""
        self._kept.pop(session.id, None)
        await self._quietly(self._snapshots.remove(session.id))

    async def _reopen(self, session_id: str, kept: KeptSession) -> Session:
        try:
            session = await self._restore(kept.body, Caller(kept.owner, kept.client, time.monotonic()))
        except InvalidInput as error:
            logger.warning("session %s cannot be restored any more: %s", session_id, error)
            raise unknown_session(session_id) from None
        session.id, session.created_at = session_id, kept.created_at
        await self._store.add(session)
        return session

    async def _keep(self, session: Session) -> bool:
        body = await self._snapshot(session)
        kept = KeptSession(session.owner, session.client, session.created_at, body)
        return session.closed or await self._snapshots.keep(session.id, kept, self._seconds)

    async def _quietly(self, work: Awaitable[None]) -> None:
        try:
            await work
        except ApiError as error:
            logger.warning("a session's snapshot stays until it expires: %s", error)
