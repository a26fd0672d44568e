"""Rollouts as server-sent events.

What the events are, and so their ids, follows from the record alone: nothing is stored for them, and a
stream can be read again from any of them for as long as the rollout is kept.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any, NamedTuple

from anyio import to_thread
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from app.errors import NO_HEADERS, ApiError, error_body
from app.frames import FrameReader
from app.npz import FrameFile
from app.rollouts import RolloutService
from app.store import LIVE, RolloutRecord, Store
from app.views import Artifacts, chunk_json, modalities_of, pictures_json, rollout_error
from app.waiting import until_gone
from worldcache.core import ModelInfo

logger = logging.getLogger(__name__)

EVENT_STREAM = "text/event-stream"
KEEP_ALIVE = b": keep-alive\n\n"
MAX_ID_DIGITS = 10


class Event(NamedTuple):
    """One event of a stream; its id is its index in :func:`list_events`.

    Attributes:
        name: ``status``, ``frame``, ``chunk``, ``done`` or ``error``.
        number: of the status in ``LIVE``, the frame or the chunk; 0 for the others.
    """

    name: str
    number: int = 0


def list_events(record: RolloutRecord) -> list[Event]:
    """The events of a rollout so far. Later ones only ever come behind them."""
    events = [Event("status", 0)]
    if record.started_at is not None:
        events.append(Event("status", 1))
    for chunk in range(len(record.chunk_ends)):
        events += [Event("frame", frame) for frame in record.chunk_frames(chunk)]
        events.append(Event("chunk", chunk))
    if not record.live:
        events.append(Event("done" if record.status == "succeeded" else "error"))
    return events


def first_event_after(last_id: str | None, record: RolloutRecord, param: str) -> int:
    """Id of the first event that a reader still lacks.

    Args:
        last_id: of the last event that it has, as it says; nothing for none.
        record: of the rollout.
        param: what to call ``last_id`` in an error.

    Raises:
        ApiError: the rollout has no such event.
    """
    if not last_id:
        return 0
    if not (last_id.isascii() and last_id.isdecimal() and len(last_id) <= MAX_ID_DIGITS):
        raise ApiError(422, "invalid_value", "send the id of an event: a whole number", param=param)
    known = len(list_events(record))
    if int(last_id) >= known:
        message = f"the rollout has no event {last_id}; its last one so far is {known - 1}"
        raise ApiError(422, "invalid_value", message, param=param)
    return int(last_id) + 1


def format_event(number: int | None, name: str, data: str) -> bytes:
    """An event as it goes over the wire; each line of its data is a field of its own."""
    lines = data.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    fields = [] if number is None else [f"id: {number}"]
    fields += [f"event: {name}", *(f"data: {line}" for line in lines)]
    return ("\n".join(fields) + "\n\n").encode()


class RolloutEvents:
    """One reader's way through a rollout's events, as slow as it likes: they are made when they are read.

    Args:
        record: of the rollout.
        info: of its model.
        store: has its frames.
        rollouts: tell of changes.
        artifacts: of the rollout.
        keep_alive: seconds of silence after which a comment is sent.
        request_id: of the reader.
    """

    def __init__(
        self,
        record: RolloutRecord,
        info: ModelInfo,
        store: Store,
        rollouts: RolloutService,
        artifacts: Artifacts,
        *,
        keep_alive: float,
        request_id: str,
    ) -> None:
        self._record, self._rollouts, self._artifacts = record, rollouts, artifacts
        self._frames = FrameReader(store, record)
        self._info, self._modalities = info, modalities_of(record, info)
        self._keep_alive, self._request_id = keep_alive, request_id

    async def read(self, number: int = 0) -> AsyncIterator[bytes]:
        """The events from the one with this id on, as they happen, until the rollout has ended."""
        while True:
            news = list_events(self._record)[number:]
            for event in news:
                try:
                    data = await self._data(event)
                except ApiError as error:  # the store let go of the rollout: no event of its, so no id
                    yield format_event(None, "error", json.dumps(self._envelope(error)))
                    return
                except Exception:
                    logger.exception("an event of rollout %s cannot be told", self._record.id)
                    failure = ApiError(500, "internal_error", "the server failed; try again later")
                    yield format_event(None, "error", json.dumps(self._envelope(failure)))
                    return
                yield format_event(number, event.name, data)
                number += 1
            if news:
                continue  # there may be more by now
            try:
                async with asyncio.timeout(self._keep_alive):
                    more = await self._rollouts.change(self._record)
            except TimeoutError:
                yield KEEP_ALIVE
            else:
                if not more:
                    return

    async def _data(self, event: Event) -> str:
        """What an event says, as JSON."""
        record = self._record
        if event.name == "frame":
            return await self._frame(event.number)
        if event.name == "status":
            data: dict[str, Any] = {"status": LIVE[event.number], "id": record.id}
        elif event.name == "chunk":
            data = chunk_json(record.chunks[event.number])
        else:
            data = await self._artifacts.rollout()
            if event.name == "error":
                data = {**self._envelope(rollout_error(record)), "rollout": data}
        return json.dumps(data, allow_nan=False)

    async def _frame(self, index: int) -> str:
        if self._record.output.format == "none":
            return json.dumps({"index": index, "chunk": self._record.chunk_of(index)})
        file, place = await self._frames.find(index)
        return await to_thread.run_sync(self._encode, index, file, place)

    def _encode(self, index: int, file: FrameFile, place: int) -> str:
        """A frame with its pictures; blocks."""
        format = "jpeg" if self._record.output.format == "jpeg" else "png"
        values = {name: file.read(name, place, place + 1)[0] for name in self._modalities}
        pictures = pictures_json(values, self._info, format)
        return json.dumps({"index": index, "chunk": self._record.chunk_of(index), **pictures})

    def _envelope(self, error: ApiError) -> dict[str, Any]:
        return error_body(error.code, error.message, error.param, self._request_id)


class EventStreamResponse(StreamingResponse):
    """Sends events until there are no more or the client has gone.

    Args:
        record: of the rollout, for the headers.
        events: formatted.
        headers: further ones.
        attendance: entered while the client reads.
    """

    media_type = EVENT_STREAM

    def __init__(
        self,
        record: RolloutRecord,
        events: AsyncIterator[bytes],
        headers: Mapping[str, str] = NO_HEADERS,
        attendance: AbstractAsyncContextManager[None] | None = None,
    ) -> None:
        fixed = {
            "Cache-Control": "no-store",
            "X-Accel-Buffering": "no",
            "Location": f"/v1/rollouts/{record.id}",
            "X-Rollout-ID": record.id,
        }
        super().__init__(events, headers={**fixed, **headers})
        self._attendance = attendance or nullcontext()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._attendance:
            await until_gone(receive, self.stream_response(send))
