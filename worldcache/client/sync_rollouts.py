"""Rollouts for ordinary code; :mod:`worldcache.client.async_rollouts` is the same for asyncio."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, Self, Unpack

import httpx
from numpy.typing import NDArray
from pydantic import PrivateAttr

from worldcache.client import rollout_operations as operations
from worldcache.client.body import RolloutFields
from worldcache.client.errors import ConnectionFailed
from worldcache.client.events import Event
from worldcache.client.exchange import Reply, read_answer
from worldcache.client.media import decode_npz
from worldcache.client.reader import EventReader
from worldcache.client.sync_link import Link
from worldcache.client.types import RolloutData


class Rollout(RolloutData):
    """A rollout as the server described it at one moment, and what can be done with it."""

    _rollouts: Rollouts = PrivateAttr()
    _frames: dict[str, NDArray[Any]] | None = PrivateAttr(None)

    def frames(self) -> dict[str, NDArray[Any]]:
        """All frames by modality: ``rgb`` uint8 ``[F, H, W, 3]``, ``depth`` float32 ``[F, H, W]``.

        Fetched when first asked for.
        """
        if self._frames is None:
            self._frames = decode_npz(self._rollouts.npz(self.id))
        return self._frames

    def save(self, path: str | os.PathLike[str], *, modality: str | None = None) -> tuple[Path, ...]:
        """Write the rollout to a file, as its ending says, and return what was written.

        ``.mp4`` and ``.webp`` are videos of one modality, ``.npz`` all arrays; ``.png`` and ``.jpg`` are
        pictures of one modality: ``dream-000.png``, ``dream-001.png``, ... for ``dream.png``.
        """
        return self._rollouts.save(self, path, modality=modality)

    def refresh(self) -> Rollout:
        """The rollout as it is now."""
        return self._rollouts.get(self.id)

    def wait(self, timeout: float | None = None) -> Rollout:
        """The rollout once it has succeeded: :meth:`Rollouts.wait`."""
        return self._rollouts.wait(self.id, timeout)

    def cancel(self) -> Rollout:
        """The rollout after it was cancelled, if it was still live."""
        return self._rollouts.cancel(self.id)

    def delete(self) -> None:
        """Remove it from the server."""
        self._rollouts.delete(self.id)

    def events(self, after: int | None = None) -> EventStream:
        """Its events: :meth:`Rollouts.events`."""
        return self._rollouts.events(self.id, after)


class EventStream:
    """A rollout's events, as they are iterated over; a lost connection is taken up again.

    Nothing is requested before the first event is asked for. Also a context manager, which closes it.
    """

    def __init__(
        self, link: Link, reader: EventReader[Rollout], leave: Callable[[str], None] | None = None
    ) -> None:
        self._reader = reader
        self._events = _read(link, reader) if leave is None else _read_or_leave(link, reader, leave)

    @property
    def rollout_id(self) -> str | None:
        """Of the rollout, once the server has accepted it."""
        return self._reader.rollout_id

    @property
    def last_id(self) -> int | None:
        """Id of the last event: what :meth:`Rollouts.events` takes to go on behind it."""
        return self._reader.last_id

    def close(self) -> None:
        """Read no further. A stream that asked for its rollout cancels it, unless it has ended."""
        self._events.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event[Rollout]:
        return next(self._events)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Rollouts:
    """``/v1/rollouts``."""

    def __init__(self, link: Link) -> None:
        self._link, self._exchange = link, link.exchange

    def create(
        self, *, wait: bool = True, idempotency_key: str | None = None, **fields: Unpack[RolloutFields]
    ) -> Rollout:
        """Generate frames.

        Args:
            wait: return once the rollout has succeeded; it is cancelled if this is interrupted. Otherwise
                return at once: see :meth:`Rollout.wait`.
            idempotency_key: stands for this rollout; a fresh one is made if it is left out.
            fields: what to generate, see :class:`RolloutFields`.

        Raises:
            ApiError: the server refused it.
            RolloutFailed, RolloutCancelled: it was waited for, and ended so.
            ConnectionFailed: the server does not answer.
        """
        request = operations.creation(fields, idempotency_key, wait=wait)
        return self._link.run(operations.create(self._exchange, request, self._wrap))

    def stream(self, *, idempotency_key: str | None = None, **fields: Unpack[RolloutFields]) -> EventStream:
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
        return EventStream(self._link, EventReader(self._exchange, self._wrap, first=request), self._leave)

    def events(self, rollout_id: str, after: int | None = None) -> EventStream:
        """The events of a rollout, live or afterwards; leaving them does nothing to it.

        Args:
            rollout_id: of the rollout.
            after: id of the last event that is known already.
        """
        return EventStream(
            self._link, EventReader(self._exchange, self._wrap, rollout_id=rollout_id, after=after)
        )

    def get(self, rollout_id: str) -> Rollout:
        """A rollout, live or finished."""
        return self._link.run(operations.get(self._exchange, rollout_id, self._wrap))

    def list(self, *, status: str | None = None, limit: int | None = None) -> Iterator[Rollout]:
        """Rollouts, newest first, requested a page at a time.

        Args:
            status: only those that have it.
            limit: most of them.
        """
        listing = operations.listing(self._exchange, self._wrap, limit, status)
        return self._link.items(listing)

    def wait(self, rollout_id: str, timeout: float | None = None) -> Rollout:
        """A rollout once it has succeeded.

        Raises:
            RolloutFailed, RolloutCancelled: it ended so.
            WaitedTooLong: it had not ended after ``timeout`` seconds.
        """
        return self._link.run(operations.wait(self._exchange, rollout_id, timeout, self._wrap))

    def cancel(self, rollout_id: str) -> Rollout:
        """Cancel a rollout; one that had ended already stays as it is."""
        return self._link.run(operations.cancel(self._exchange, rollout_id, self._wrap))

    def delete(self, rollout_id: str) -> None:
        """Remove a rollout, cancelling it first if it is live."""
        self._link.run(operations.delete(self._exchange, rollout_id))

    def npz(self, rollout_id: str) -> bytes:
        """The ``frames.npz`` of a finished rollout."""
        return self._link.run(operations.npz(self._exchange, rollout_id))

    def save(
        self, rollout: RolloutData, path: str | os.PathLike[str], *, modality: str | None = None
    ) -> tuple[Path, ...]:
        """Write a rollout to a file: :meth:`Rollout.save`."""
        contents = self._link.run(operations.files(self._exchange, rollout, Path(path), modality))
        return operations.write_files(contents)

    def _wrap(self, data: Any) -> Rollout:
        rollout = read_answer(Rollout, data)
        rollout._rollouts = self
        return rollout

    def _leave(self, rollout_id: str) -> None:
        self._link.run(operations.leave(self._exchange, rollout_id, self._wrap))


def _read(link: Link, reader: EventReader[Rollout]) -> Generator[Event[Rollout], None, None]:
    """The events, over as many connections as it takes."""
    while True:
        request = reader.request()
        trouble: Reply | httpx.RequestError | None = None
        try:
            with link.open(request) as response:
                if response.status_code == 200:
                    reader.connected(response.headers)
                    for data in response.iter_bytes():
                        yield from reader.feed(data)
                else:
                    trouble = Reply(response.status_code, response.headers, response.read())
        except httpx.RequestError as error:
            trouble = error
        if reader.ended:
            return
        link.sleep(reader.pause(request, trouble))


def _read_or_leave(
    link: Link, reader: EventReader[Rollout], leave: Callable[[str], None]
) -> Generator[Event[Rollout], None, None]:
    """The events; a reader that goes away before their end has the rollout cancelled."""
    try:
        yield from _read(link, reader)
    except ConnectionFailed:
        raise
    except BaseException:
        if reader.rollout_id is not None and not reader.ended:
            leave(reader.rollout_id)
        raise
