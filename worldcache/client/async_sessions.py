"""Sessions for asyncio; :mod:`worldcache.client.sync_sessions` is the same for ordinary code."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

from worldcache.client import session_operations as operations
from worldcache.client.async_link import AsyncLink
from worldcache.client.async_live import AsyncLiveConnection
from worldcache.client.body import SessionFields
from worldcache.client.live import LiveProtocol, Mode
from worldcache.client.session_operations import Keep
from worldcache.client.session_state import SessionView
from worldcache.client.session_types import Plan, Step


class AsyncSession(SessionView):
    """A world that goes on step by step. Also a context manager, which closes it.

    For one task at a time, and the only handle that takes steps: of two steps with one number the server
    takes the first, and answers both with it. What others do to the session shows after :meth:`refresh`.
    """

    def __init__(self, sessions: AsyncSessions, data: Any) -> None:
        super().__init__(data)
        self._sessions, self._link, self._exchange = sessions, sessions._link, sessions._link.exchange

    async def step(self, actions: Sequence[Any]) -> Step:
        """Generate the next ``frames_per_step`` frames.

        A request whose answer is lost is repeated under its number, and computed once. If that does not help
        either, the step may have been taken or not: the same actions given again repeat it, and anything
        else undoes it first. So a step that raised is no part of the session.

        Args:
            actions: one for each of the frames, or one for all.

        Raises:
            ApiError: the server refused it, or it failed.
            ConnectionFailed: the server does not answer.
        """
        return await self._link.run(operations.step(self._exchange, self._state, actions))

    async def fork(self) -> AsyncSession:
        """A new session with the same past, seed and cache."""
        return await self._link.run(operations.fork(self._exchange, self._state, self._sessions._wrap))

    async def rewind(self, to_frame: int) -> None:
        """Go back to the end of a step, not before ``data.rewind_from_frame``, or to frame 0."""
        await self._link.run(operations.rewind(self._exchange, self._state, to_frame))

    async def reset(self) -> None:
        """Go back to frame 0."""
        await self._link.run(operations.reset(self._exchange, self._state))

    async def change_cache(self, cache: str | Mapping[str, Any] | None) -> None:
        """Use another cache from the next step on; ``None`` for the model's default preset."""
        await self._link.run(operations.change_cache(self._exchange, self._state, cache))

    async def plan(self, candidates: Sequence[Sequence[Any]], *, frames: Keep = "all") -> Plan:
        """Generate what would come of each of several sequences of actions; the session stays as it is.

        Args:
            candidates: sequences of actions, each padded to whole steps with its last one.
            frames: which frames of each are answered: ``all``, the ``last`` one or ``none``.

        Returns:
            A branch for each candidate. One that failed says why, and the others are there all the same.
        """
        return await self._link.run(operations.plan(self._exchange, self._state, candidates, frames))

    async def snapshot(self) -> dict[str, Any]:
        """The session as a document, JSON as it is: what :meth:`AsyncSessions.restore` goes on from."""
        return await self._link.run(operations.snapshot(self._exchange, self._state))

    def stream(
        self,
        *,
        mode: Mode = "lockstep",
        modalities: Sequence[str] | None = None,
        format: str | None = None,
        details: bool = False,
    ) -> AsyncLiveConnection:
        """Drive it over a WebSocket, which takes over from any that there is.

        Args:
            mode: ``lockstep``, a step for each action; or ``free``, the world goes on by itself.
            modalities: that are sent; the session's if left out.
            format: ``png`` or ``jpeg``; the session's if left out.
            details: a message with statistics and token maps comes before the frames of each step.

        Raises:
            WebSocketsMissing: it needs websockets.
        """
        protocol = LiveProtocol(self._exchange, self._state, mode, modalities, format, details)
        return AsyncLiveConnection(self._link, self._state, protocol)

    async def refresh(self) -> None:
        """Learn from the server how the session is now."""
        await self._link.run(operations.refresh(self._exchange, self._state))

    async def aclose(self) -> None:
        """Close it on the server; nothing happens to one that is closed already."""
        await self._link.run(operations.close(self._exchange, self.id))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            await self.aclose()
        else:
            await self._link.run_to_its_end(operations.leave(self._exchange, self.id))


class AsyncSessions:
    """``/v1/sessions``."""

    def __init__(self, link: AsyncLink) -> None:
        self._link, self._exchange = link, link.exchange

    async def create(self, **fields: Unpack[SessionFields]) -> AsyncSession:
        """Open a session at an observation; it generates nothing yet.

        Not repeated if the connection is lost: the server would keep both until they expire.

        Args:
            fields: where it starts and how it goes on, see :class:`SessionFields`.

        Raises:
            ApiError: the server refused it.
            ConnectionFailed: the server does not answer.
        """
        return await self._link.run(operations.create(self._exchange, fields, self._wrap))

    async def restore(self, snapshot: Mapping[str, Any]) -> AsyncSession:
        """A new session that goes on where :meth:`AsyncSession.snapshot` was taken, here or elsewhere."""
        return await self._link.run(operations.restore(self._exchange, snapshot, self._wrap))

    async def get(self, session_id: str) -> AsyncSession:
        """An open session."""
        return await self._link.run(operations.get(self._exchange, session_id, self._wrap))

    def list(self, *, limit: int | None = None) -> AsyncIterator[AsyncSession]:
        """Open sessions, newest first, requested a page at a time; at most ``limit`` of them."""
        return self._link.items(operations.listing(self._exchange, self._wrap, limit))

    async def step_all(
        self, steps: Iterable[tuple[AsyncSession, Sequence[Any]]], *, frames: Keep = "all"
    ) -> tuple[Step, ...]:
        """Take a step in each of several sessions at once, with one request and shared batches.

        Args:
            steps: each session and its actions, as :meth:`AsyncSession.step` takes them.
            frames: which frames of each step are answered: ``all``, the ``last`` one or ``none``.

        Returns:
            The steps, in order.

        Raises:
            StepsFailed: some were not taken; it has those that were, which are part of their sessions.
            ApiError: the server refused all of them.
            ConnectionFailed: the server does not answer.
        """
        asked = [(session._state, actions) for session, actions in steps]
        return await self._link.run(operations.step_all(self._exchange, asked, frames))

    def _wrap(self, data: Any) -> AsyncSession:
        return AsyncSession(self, data)
