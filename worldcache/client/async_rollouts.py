"""Rollouts for asyncio; :mod:`worldcache.client.sync_rollouts` is the same for ordinary code."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any, Self, Unpack

import httpx
from numpy.typing import NDArray
from pydantic import PrivateAttr

from worldcache.client import rollout_operations as operations
from worldcache.client.async_link import AsyncLink
from worldcache.client.body import RolloutFields
from worldcache.client.errors import ConnectionFailed
from worldcache.client.events import Event
from worldcache.client.exchange import Reply, read_answer
from worldcache.client.media import decode_npz
from worldcache.client.reader import EventReader
from worldcache.client.types import RolloutData


class AsyncRollout(RolloutData):
    """A rollout as the server described it at one moment, and what can be done with it."""

    _rollouts: AsyncRollouts = PrivateAttr()
    _frames: dict[str, NDArray[Any]] | None = PrivateAttr(None)

    async def frames(self) -> dict[str, NDArray[Any]]:
        """All frames by modality: ``rgb`` uint8 ``[F, H, W, 3]``, ``depth`` float32 ``[F, H, W]``.

        Fetched when first asked for.
        """
        if self._frames is None:
            self._frames = await asyncio.to_thread(decode_npz, await self._rollouts.npz(self.id))
        return self._frames

    async def save(self, path: str | os.PathLike[str], *, modality: str | None = None) -> tuple[Path, ...]:
        """Write the rollout to a file, as its ending says, and return what was written.

        ``.mp4`` and ``.webp`` are videos of one modality, ``.npz`` all arrays; ``.png`` and ``.jpg`` are
        pictures of one modality: ``dream-000.png``, ``dream-001.png``, ... for ``dream.png``.
        """
        return await self._rollouts.save(self, path, modality=modality)

    async def refresh(self) -> AsyncRollout:
        """The rollout as it is now."""
        return await self._rollouts.get(self.id)

    async def wait(self, timeout: float | None = None) -> AsyncRollout:
        """The rollout once it has succeeded: :meth:`AsyncRollouts.wait`."""
        return await self._rollouts.wait(self.id, timeout)

    async def cancel(self) -> AsyncRollout:
        """The rollout after it was cancelled, if it was still live."""
        return await self._rollouts.cancel(self.id)

    async def delete(self) -> None:
        """Remove it from the server."""
        await self._rollouts.delete(self.id)

    def events(self, after: int | None = None) -> AsyncEventStream:
        """Its events: :meth:`AsyncRollouts.events`."""
        return self._rollouts.events(self.id, after)


class AsyncEventStream:
    """A rollout's events, as they are iterated over; a lost connection is taken up again.

    Nothing is requested before the first event is asked for. Also a context manager, which closes it.
    """

    def __init__(
        self,
        link: AsyncLink,
        reader: EventReader[AsyncRollout],
        leave: Callable[[str], Awaitable[None]] | None = None,
    ) -> None:
        self._reader = reader
        self._events = _read(link, reader) if leave is None else _read_or_leave(link, reader, leave)

    @property
    def rollout_id(self) -> str | None:
        """Of the rollout, once the server has accepted it."""
        return self._reader.rollout_id

    @property
    def last_id(self) -> int | None:
        """Id of the last event: what :meth:`AsyncRollouts.events` takes to go on behind it."""
        return self._reader.last_id

    async def aclose(self) -> None:
        """Read no further. A stream that asked for its rollout cancels it, unless it has ended."""
        await self._events.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event[AsyncRollout]:
        return await anext(self._events)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class AsyncRollouts:
    """``/v1/rollouts``."""

    def __init__(self, link: AsyncLink) -> None:
        self._link, self._exchange = link, link.exchange

    async def create(
        self, *, wait: bool = True, idempotency_key: str | None = None, **fields: Unpack[RolloutFields]
    ) -> AsyncRollout:
        """Generate frames.

        Args:
            wait: return once the rollout has succeeded; it is cancelled if this is interrupted. Otherwise
                return at once: see :meth:`AsyncRollout.wait`.
            idempotency_key: stands for this rollout; a fresh one is made if it is left out.
            fields: what to generate, see :class:`RolloutFields`.

        Raises:
            ApiError: the server refused it.
            RolloutFailed, RolloutCancelled: it was waited for, and ended so.
            ConnectionFailed: the server does not answer.
        """
        request = operations.creation(fields, idempotency_key, wait=wait)
        return await self._link.run(operations.create(self._exchange, request, self._wrap))

    def stream(
        self, *, idempotency_key: str | None = None, **fields: Unpack[RolloutFields]
    ) -> AsyncEventStream:
        """Generate frames, and have each as soon as it is there.

        The rollout is cancelled when the stream is closed, or no longer iterated over, before its end.
        After :class:`ConnectionFailed` it goes on: :meth:`events` reads further.

        Args:
            idempotency_key: stands for this rollout; a fresh one is made if it is left out.
            fields: what to generate, see :class:`RolloutFields`.

        Raises:
            ClientError: as :meth:`create`, when it is iterated over.
        """
        request = operations.creation(fields, idempotency_key, wait=False, stream=True)
        return AsyncEventStream(
            self._link, EventReader(self._exchange, self._wrap, first=request), self._leave
        )

    def events(self, rollout_id: str, after: int | None = None) -> AsyncEventStream:
        """The events of a rollout, live or afterwards; leaving them does nothing to it.

        Args:
            rollout_id: of the rollout.
            after: id of the last event that is known already.
        """
        return AsyncEventStream(
            self._link, EventReader(self._exchange, self._wrap, rollout_id=rollout_id, after=after)
        )

    async def get(self, rollout_id: str) -> AsyncRollout:
        """A rollout, live or finished."""
        return await self._link.run(operations.get(self._exchange, rollout_id, self._wrap))

    def list(self, *, status: str | None = None, limit: int | None = None) -> AsyncIterator[AsyncRollout]:
        """Rollouts, newest first, requested a page at a time.

        Args:
            status: only those that have it.
            limit: most of them.
        """
        listing = operations.listing(self._exchange, self._wrap, limit, status)
        return self._link.items(listing)

    async def wait(self, rollout_id: str, timeout: float | None = None) -> AsyncRollout:
        """A rollout once it has succeeded.

        Raises:
            RolloutFailed, RolloutCancelled: it ended so.
            WaitedTooLong: it had not ended after ``timeout`` seconds.
        """
        return await self._link.run(operations.wait(self._exchange, rollout_id, timeout, self._wrap))

    async def cancel(self, rollout_id: str) -> AsyncRollout:
        """Cancel a rollout; one that had ended already stays as it is."""
        return await self._link.run(operations.cancel(self._exchange, rollout_id, self._wrap))

    async def delete(self, rollout_id: str) -> None:
        """Remove a rollout, cancelling it first if it is live."""
        await self._link.run(operations.delete(self._exchange, rollout_id))

    async def npz(self, rollout_id: str) -> bytes:
        """The ``frames.npz`` of a finished rollout."""
        return await self._link.run(operations.npz(self._exchange, rollout_id))

    async def save(
        self, rollout: RolloutData, path: str | os.PathLike[str], *, modality: str | None = None
    ) -> tuple[Path, ...]:
        """Write a rollout to a file: :meth:`AsyncRollout.save`."""
        contents = await self._link.run(operations.files(self._exchange, rollout, Path(path), modality))
        return await asyncio.to_thread(operations.write_files, contents)

    def _wrap(self, data: Any) -> AsyncRollout:
        rollout = read_answer(AsyncRollout, data)
        rollout._rollouts = self
        return rollout

    async def _leave(self, rollout_id: str) -> None:
        await self._link.run_to_its_end(operations.leave(self._exchange, rollout_id, self._wrap))


async def _read(
    link: AsyncLink, reader: EventReader[AsyncRollout]
) -> AsyncGenerator[Event[AsyncRollout], None]:
    """The events, over as many connections as it takes."""
    while True:
        request = reader.request()
        trouble: Reply | httpx.RequestError | None = None
        try:
            async with link.open(request) as response:
                if response.status_code == 200:
                    reader.connected(response.headers)
                    async for data in response.aiter_bytes():
                        for event in reader.feed(data):
                            yield event
                else:
                    trouble = Reply(response.status_code, response.headers, await response.aread())
        except httpx.RequestError as error:
            trouble = error
        if reader.ended:
            return
        await link.sleep(reader.pause(request, trouble))


async def _read_or_leave(
    link: AsyncLink, reader: EventReader[AsyncRollout], leave: Callable[[str], Awaitable[None]]
) -> AsyncGenerator[Event[AsyncRollout], None]:
    """The events; a reader that goes away before their end has the rollout cancelled."""
    try:
        async with aclosing(_read(link, reader)) as events:
            async for event in events:
                yield event
    except ConnectionFailed:
        raise
    except BaseException:
        if reader.rollout_id is not None and not reader.ended:
            await leave(reader.rollout_id)
        raise
