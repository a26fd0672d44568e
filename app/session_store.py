"""Sessions and where they are kept: in memory; another place fits behind :class:`SessionStore`."""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from pydantic import JsonValue

from app.errors import ApiError, NotFound, Unavailable
from app.requests import Terms
from app.schemas import PicturesBody
from worldcache.core import Frames, RolloutState, RolloutStats

MAX_SWEEP_SECONDS = 30.0
"""Longest between two sweeps of expired sessions."""

MAX_GRAVES = 10_000
"""Closed and expired sessions that are remembered, so that their clients are told."""


@dataclass(frozen=True)
class Outcome:
    """What a rollout from a session's state came to.

    Attributes:
        first_frame: index in the session of the first of ``frames``.
        frames: those that were to be kept.
        frame_count: how many were generated.
        state: behind the last one; ``None`` if frames were dropped.
        first_frame_at: when the first one was there, by ``time.monotonic()``.
        replaced_preset: that was asked for, if audits had it replaced.
    """

    first_frame: int
    frames: Frames
    frame_count: int
    stats: RolloutStats
    state: RolloutState | None
    first_frame_at: float
    expected_seconds: float | None
    replaced_preset: str | None


@dataclass(frozen=True)
class CommittedStep:
    """A step that has become part of its session's past."""

    step_id: int
    outcome: Outcome
    action_to_frame_seconds: float


@dataclass(eq=False)
class Session:
    """All that is known of a session. Nothing of it is on a model: an idle one lets its model go.

    Attributes:
        owner: who may see it.
        client: whose it is, for limits.
        cache: as in a request; ``terms.policy`` is what it stands for.
        start: the state at frame 0.
        actions: as they were sent, one for each frame so far.
        history: states at the ends of the latest steps; the last one is now.
        last: the step that led to now, if it is kept for repeats.
        parent: the session that it was forked from.
        steps_total, steps_full: denoise steps of the steps that were committed here.
        expires_at: as clients are told, in seconds since the epoch.
        used_at: when it was last used, by the store's clock, which it expires by.
        users: what goes on with it; it does not expire meanwhile.
        gone: set once it was deleted or has expired.
    """

    owner: str
    client: str
    model: str
    terms: Terms
    cache: str | dict[str, Any] | None
    frames_per_step: int
    output: PicturesBody
    metadata: dict[str, str]
    start: RolloutState
    history: deque[RolloutState]
    actions: list[JsonValue] = field(default_factory=list)
    last: CommittedStep | None = None
    parent: str | None = None
    id: str = field(default_factory=lambda: f"se_{uuid.uuid4().hex}")
    created_at: float = field(default_factory=time.time)
    expires_at: float = 0.0
    used_at: float = 0.0
    steps_total: int = 0
    steps_full: int = 0
    users: int = 0
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def closed(self) -> bool:
        """It was deleted, or has expired."""
        return self.gone.is_set()

    @property
    def state(self) -> RolloutState:
        """Where it stands."""
        return self.history[-1] if self.history else self.start

    @property
    def frames(self) -> int:
        return self.state.frames

    @property
    def next_step_id(self) -> int:
        return self.frames // self.frames_per_step

    @property
    def committed_step_id(self) -> int | None:
        return self.next_step_id - 1 if self.next_step_id else None

    @property
    def rewind_from_frame(self) -> int:
        """The earliest frame that it can be rewound to, frame 0 apart."""
        return self.history[0].frames if self.history else 0

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """It does not expire inside."""
        self.users += 1
        try:
            yield
        finally:
            self.users -= 1


class SessionStore(Protocol):
    """Keeps open sessions and bounds them. Everything is asynchronous, for backends on a network."""

    async def check_room(self, client: str) -> None:
        """Refuse what :meth:`add` would refuse now, before any work is done for it."""

    async def add(self, session: Session) -> None:
        """Keep a new session.

        Raises:
            Unavailable: 503 while there are too many.
            ApiError: 429 while the client has too many.
        """

    async def save(self, session: Session) -> None:
        """Keep what has changed about a session; it was used, so it expires later."""

    async def find(self, session_id: str, owner: str) -> Session:
        """An owner's open session.

        Raises:
            NotFound: there never was one.
            ApiError: 410, it was closed or has expired.
        """

    async def list(self, owner: str, *, limit: int, after: str | None) -> list[Session]:
        """An owner's open sessions, newest first, at most ``limit``, from behind ``after`` on."""

    async def all(self) -> Sequence[Session]:
        """Every open session."""

    async def close(self, session: Session) -> None:
        """Let go of a session."""

    async def sweep(self) -> None:
        """Let go of those that have expired."""


def unknown_session(session_id: str) -> NotFound:
    """What somebody is told who asks for a session that there never was, or that is another's."""
    return NotFound(f"there is no session {session_id!r}", code="unknown_session")


class InMemorySessionStore:
    """The default store: gone with the process.

    Args:
        max_sessions: most open ones.
        max_per_client: most open ones of a client.
        ttl_seconds: how long one is kept that nobody uses.
        retry_after: least seconds that a refused client is asked to wait.
        counted: told of every change of a model's number of sessions.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        *,
        max_sessions: int,
        max_per_client: int,
        ttl_seconds: float,
        retry_after: int,
        counted: Callable[[str, int], None] = lambda model, change: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_sessions, self._max_per_client = max_sessions, max_per_client
        self._ttl, self._retry_after = ttl_seconds, retry_after
        self._counted, self._clock = counted, clock
        self._sessions: dict[str, Session] = {}
        self._graves: OrderedDict[str, tuple[str, str]] = OrderedDict()

    async def check_room(self, client: str) -> None:
        await self.sweep()
        mine = [session for session in self._sessions.values() if session.client == client]
        if len(mine) >= self._max_per_client:
            raise ApiError(
                429,
                "too_many_sessions",
                f"at most {self._max_per_client} open sessions of one client; close one that is not needed",
                headers={"Retry-After": str(self._seconds_until_room(mine))},
            )
        if len(self._sessions) >= self._max_sessions:
            everyone = list(self._sessions.values())
            message = f"the server has {self._max_sessions} open sessions, which is the most; try again later"
            raise Unavailable("session_limit", message, retry_after=self._seconds_until_room(everyone))

    async def add(self, session: Session) -> None:
        await self.check_room(session.client)
        self._sessions[session.id] = session
        self._counted(session.model, 1)
        await self.save(session)

    async def save(self, session: Session) -> None:
        session.used_at, session.expires_at = self._clock(), time.time() + self._ttl

    async def find(self, session_id: str, owner: str) -> Session:
        await self.sweep()
        session = self._sessions.get(session_id)
        if session is not None and session.owner == owner:
            return session
        buried_owner, why = self._graves.get(session_id, ("", ""))
        if why and buried_owner == owner:
            message = f"session {session_id!r} {why}; begin another one"
            raise ApiError(410, "session_gone", message)
        raise unknown_session(session_id)

    async def list(self, owner: str, *, limit: int, after: str | None) -> list[Session]:
        await self.sweep()
        mine = [session for session in reversed(self._sessions.values()) if session.owner == owner]
        if after is not None:
            ids = [session.id for session in mine]
            mine = mine[ids.index(after) + 1 :] if after in ids else []
        return mine[:limit]

    async def all(self) -> Sequence[Session]:
        return [*self._sessions.values()]

    async def close(self, session: Session) -> None:
        self._bury(session, "was closed")

    async def sweep(self) -> None:
        limit = self._clock() - self._ttl
        for session in list(self._sessions.values()):
            if not session.users and session.used_at <= limit:
                self._bury(session, f"expired: nobody used it for {self._ttl:g} s")

    async def keep_swept(self) -> None:
        """Let go of expired sessions from time to time, until it is cancelled."""
        while True:
            await asyncio.sleep(min(MAX_SWEEP_SECONDS, self._ttl / 2))
            await self.sweep()

    def _bury(self, session: Session, why: str) -> None:
        if self._sessions.pop(session.id, None) is None:
            return
        session.gone.set()
        self._counted(session.model, -1)
        self._graves[session.id] = (session.owner, why)
        if len(self._graves) > MAX_GRAVES:
            self._graves.popitem(last=False)

    def _seconds_until_room(self, sessions: Sequence[Session]) -> int:
        """When the first of them expires, if nobody uses it until then."""
        left = min(session.used_at for session in sessions) + self._ttl - self._clock()
        return max(self._retry_after, math.ceil(left))
