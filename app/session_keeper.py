"""Snapshots of sessions that outlive their server, and sessions that come back from them."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from app.auth import Caller
from app.errors import ApiError, Unavailable
from app.schemas import SnapshotBody
from app.session_store import Session
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
        snapshots: where they are kept.
        snapshot, restore: make a document of a session, and a session of a document.
        seconds: how long a snapshot is kept.
    """

    def __init__(
        self, snapshots: SnapshotStore, snapshot: Snapshot, restore: Restore, seconds: float
    ) -> None:
        self._snapshots, self._snapshot, self._restore = snapshots, snapshot, restore
        self._seconds = seconds
        self._kept: dict[str, object] = {}
        self._silent_models: set[str] = set()

    async def keep_changed(self, sessions: Iterable[Session]) -> list[Session]:
        """Write down those of the open sessions that have changed; returns those that are elsewhere now."""
        moved: list[Session] = []
        open_ones = list(sessions)
        for session in open_ones:
            mark = (session.state, session.cache)
            if session.closed or session.model in self._silent_models or self._kept.get(session.id) == mark:
                continue
            try:
                if await self._keep(session):
                    self._kept[session.id] = mark
                else:
                    moved.append(session)
            except InvalidInput as error:
                if error.code != "not_supported":
                    raise
                self._silent_models.add(session.model)
            except Unavailable as error:
                logger.warning("session %s is not kept for now: %s", session.id, error)
        known = {session.id for session in open_ones}
        self._kept = {name: mark for name, mark in self._kept.items() if name in known}
        return moved

    async def find(self, session_id: str, owner: str) -> Session | None:
        """A session of a server that has ended, where it was last written down.

        Raises:
            ApiError: it is at another server, or cannot be restored here now.
        """
        kept = await self._snapshots.take(session_id, owner)
        if kept is None:
            return None
        try:
            session = await self._restore(kept.body, Caller(kept.owner, kept.client, time.monotonic()))
        except InvalidInput as error:
            logger.warning("session %s cannot be restored any more: %s", session_id, error)
            await self._snapshots.leave(session_id)
            return None
        except BaseException:
            await self._snapshots.leave(session_id)
            raise
        session.id, session.created_at = session_id, kept.created_at
        logger.warning("session %s is restored at frame %d", session_id, session.frames)
        return session

    async def leave(self, sessions: Iterable[Session]) -> None:
        """Let other servers have the sessions."""
        for session in list(sessions):
            if session.id in self._kept:
                await self._quietly(self._snapshots.leave(session.id))

    async def remove(self, session: Session) -> None:
        """A session was closed."""
        self._kept.pop(session.id, None)
        await self._quietly(self._snapshots.remove(session.id))

    async def _keep(self, session: Session) -> bool:
        body = await self._snapshot(session)
        kept = KeptSession(session.owner, session.client, session.created_at, body)
        return session.closed or await self._snapshots.keep(session.id, kept, self._seconds)

    async def _quietly(self, work: Awaitable[None]) -> None:
        try:
            await work
        except ApiError as error:
            logger.warning("a session's snapshot stays until it expires: %s", error)
