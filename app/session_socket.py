"""One client's WebSocket to a session: what it says is obeyed, and what the world shows is sent.

Five tasks share a socket: one reads, one takes steps, one encodes their frames, one sends, one waits for a
reason to end. A step is begun before the frames of the one before are encoded.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import replace
from typing import Any

from anyio import to_thread
from starlette.websockets import WebSocket, WebSocketDisconnect

from app.action_line import ActionLine, Batch
from app.auth import Caller
from app.errors import ApiError
from app.outbox import Outbox, OutgoingFrame
from app.session_store import Session
from app.session_views import session_json
from app.sessions import SessionService
from app.socket_ending import (
    GOING_AWAY,
    POLICY_VIOLATION,
    SERVER_ERROR,
    SESSION_GONE,
    Ending,
    close,
    first_ending,
)
from app.socket_messages import (
    ActionMessage,
    CacheMessage,
    ClientMessage,
    PauseMessage,
    PingMessage,
    ResetMessage,
    ResumeMessage,
    RewindMessage,
    parse_object,
    read_message,
    seq_of,
)
from app.socket_views import (
    NO_STEP,
    SocketOptions,
    TakenStep,
    error_text,
    outgoing_frames,
    picture_text,
    to_text,
)
from worldcache.errors import InvalidInput, WorldCacheError

logger = logging.getLogger(__name__)

MAX_MESSAGE = 256 * 1024
"""Longest message of a client, in characters."""

MAX_UNREADABLE = 5
"""Messages in a row that are no JSON objects, after which nobody listens any more."""

MIN_RETRY_SECONDS = 0.1
"""Least time before a refused step is tried again."""

STEPS_AT_ONCE = 2
"""Steps of a socket that are on their way: one is computed while the one before is encoded."""


class SessionSocket:
    """A connection from its acceptance to its end.

    Args:
        websocket: accepted.
        session: of the caller.
        service: does what is asked.
        options: that the client chose.
        caller: of every step.
        outbox: empty.
        idle_seconds: silence after which a world that runs freely is paused.
        request_id: for errors.
    """

    def __init__(
        self,
        websocket: WebSocket,
        session: Session,
        service: SessionService,
        options: SocketOptions,
        caller: Caller,
        outbox: Outbox,
        *,
        idle_seconds: float,
        request_id: str,
    ) -> None:
        self._websocket, self._session, self._service = websocket, session, service
        self._options, self._caller, self._outbox = options, caller, outbox
        self._idle_seconds, self._request_id = idle_seconds, request_id
        self._info = service.info(session)
        self._line = ActionLine(options.mode, session.frames_per_step)
        self._paused = self._rewinding = self._leaving = False
        self._retry_at = 0.0
        self._heard_at = time.monotonic()
        self._done: TakenStep | None = None
        self._to_encode: asyncio.Queue[TakenStep] = asyncio.Queue()
        self._room = asyncio.Semaphore(STEPS_AT_ONCE)
        self._wake = asyncio.Event()
        self._ended: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        self.finished = asyncio.Event()

    @property
    def owner(self) -> str:
        """Whose connection it is."""
        return self._caller.owner

    async def run(self) -> None:
        """Serve the client until one of the two sides ends it."""
        ending = Ending(SERVER_ERROR, "the server failed; connect again")
        try:
            await self._service.settle(self._session)
            self._tell(
                "ready",
                session=session_json(self._session, self._info),
                mode=self._options.mode,
                modalities=self._options.modalities,
                format=self._options.format,
            )
            async with asyncio.TaskGroup() as tasks:
                for work in self._works():
                    tasks.create_task(work)
        except* Ending as group:
            ending = first_ending(group)
        except* Exception:
            logger.exception("the socket of session %s failed", self._session.id)
        finally:
            self.finished.set()
        await close(self._websocket, ending)

    def end(self, code: int, reason: str) -> None:
        """Close it now, and begin nothing more; a step on its way is finished by the service."""
        self._leaving = True
        if not self._ended.done():
            self._ended.set_result(Ending(code, reason))

    def leave(self) -> None:
        """Close it when the step on its way has been shown."""
        self._leaving = True
        self._wake.set()

    def _works(self) -> list[Coroutine[Any, Any, None]]:
        return [
            self._read(),
            self._take_steps(),
            self._encode(),
            self._send(),
            self._until_ended(),
            self._until_gone(),
        ]

    async def _until_ended(self) -> None:
        raise await self._ended

    async def _until_gone(self) -> None:
        await self._session.gone.wait()
        raise Ending(SESSION_GONE, "the session was closed or has expired; begin another one")

    # What the client says

    async def _read(self) -> None:
        unreadable = 0
        while True:
            await self._outbox.room()
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                raise Ending(None)
            self._heard_at = time.monotonic()
            text = message.get("text")
            if len(text or message.get("bytes") or "") > MAX_MESSAGE:
                raise Ending(POLICY_VIOLATION, f"a message has at most {MAX_MESSAGE} characters")
            data = parse_object(text) if text is not None else None
            if data is not None:
                unreadable = 0
                await self._hear(data, self._heard_at)
                continue
            unreadable += 1
            if unreadable == MAX_UNREADABLE:
                raise Ending(POLICY_VIOLATION, "send JSON objects, as text")
            self._tell_error(ApiError(400, "invalid_json", "send a JSON object, as a text message"))

    async def _hear(self, data: dict[str, Any], arrived: float) -> None:
        """Obey one message, or say what is wrong with it."""
        await self._service.store.save(self._session)
        try:
            await self._obey(read_message(data), arrived)
        except (ApiError, InvalidInput) as error:
            self._tell_error(error, seq_of(data))

    async def _obey(self, message: ClientMessage, arrived: float) -> None:
        match message:
            case ActionMessage():
                self._add(message, arrived)
            case CacheMessage():
                await self._service.change_cache(self._session, message.cache)
                self._tell("cache", policy=self._session.terms.policy.name, cache=self._session.cache)
            case PauseMessage():
                self._pause("client")
            case ResumeMessage():
                self._paused = False
                self._tell("resumed")
            case ResetMessage():
                await self._rewind("reset", 0)
            case RewindMessage():
                await self._rewind("rewind", message.to_frame)
            case PingMessage():
                self._tell("pong", id=message.id)
        self._wake.set()

    def _add(self, message: ActionMessage, arrived: float) -> None:
        """Let actions wait for their step, once it is known that the model understands them."""
        values, space = message.actions, self._info.action_space
        if values is not None:
            space.parse(values)
        else:
            try:
                space.parse([message.action])
            except InvalidInput as error:
                raise error.at("action") from None
        self._line.add(message.seq, values or [message.action], arrived, alone=values is not None)

    async def _rewind(self, kind: str, to_frame: int) -> None:
        """Go back once nothing is on its way; what waits is forgotten."""
        self._rewinding = True
        try:
            await self._service.settle(self._session)
            await self._shown()
            await self._service.rewind(self._session, to_frame)
            dropped = self._line.clear()
        finally:
            self._rewinding = False
        committed = self._session.committed_step_id
        self._tell(
            kind,
            frames=self._session.frames,
            committed_step_id=NO_STEP if committed is None else committed,
            dropped_actions=dropped,
        )

    # Steps

    async def _take_steps(self) -> None:
        while True:
            await self._room.acquire()
            batch = await self._next_batch()
            caller = replace(self._caller, arrived=batch.arrived or time.monotonic())
            try:
                step = await self._service.step(
                    self._session,
                    batch.values,
                    None,
                    caller,
                    acted=batch.arrived is not None,
                    begun=self._hand_over,
                )
            except (ApiError, WorldCacheError) as error:
                self._room.release()
                await self._refused(batch, error)
            else:
                self._done = TakenStep(batch, step)

    async def _next_batch(self) -> Batch:
        """What the next step is to show, as soon as it may begin."""
        while True:
            self._wake.clear()
            if self._leaving:
                await self._shown()
                await self._outbox.flushed()
                raise Ending(GOING_AWAY, "the server is shutting down; connect again later")
            await self._pause_if_idle()
            wait = self._retry_at - time.monotonic()
            free = not (self._paused or self._rewinding or self._service.stepping(self._session))
            if free and wait <= 0 and (batch := self._line.take()) is not None:
                return batch
            self._hand_over()
            await self._until_woken(wait if wait > 0 else None)

    async def _until_woken(self, seconds: float | None) -> None:
        """Wait until something has changed: a message, somebody else's step, or the time."""
        if self._service.stepping(self._session):
            await self._service.settle(self._session)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()

    def _hand_over(self) -> None:
        """Let the frames of the last step be encoded."""
        if self._done is not None:
            self._to_encode.put_nowait(self._done)
            self._done = None

    async def _refused(self, batch: Batch, error: ApiError | WorldCacheError) -> None:
        """Tell what became of a step; one that only has to wait is tried again later."""
        await self._shown()
        told = _as_told(error)
        if told.code == "session_gone":
            return  # its end is on its way
        retry_after = told.headers.get("Retry-After") if isinstance(told, ApiError) else None
        if retry_after is not None:
            self._line.put_back(batch)
            self._retry_at = time.monotonic() + max(float(retry_after), MIN_RETRY_SECONDS)
            self._tell_error(told, batch.seq, float(retry_after))
            return
        self._tell_error(told, batch.seq)
        if self._options.mode == "free":
            self._pause("error")

    async def _pause_if_idle(self) -> None:
        silent = time.monotonic() - self._heard_at
        if self._line.holding and not self._paused and silent > self._idle_seconds:
            await self._shown()
            self._pause("idle")

    def _pause(self, reason: str) -> None:
        self._paused = True
        self._tell("paused", reason=reason)

    # What the client is shown

    async def _encode(self) -> None:
        while True:
            taken = await self._to_encode.get()
            await to_thread.run_sync(self._encode_step, taken, asyncio.get_running_loop())
            self._to_encode.task_done()
            self._room.release()

    def _encode_step(self, taken: TakenStep, loop: asyncio.AbstractEventLoop) -> None:
        """Hand out each frame as soon as it is encoded; blocks."""
        for frame in outgoing_frames(taken, self._options, self._info):
            loop.call_soon_threadsafe(self._outbox.put_frame, frame)

    async def _shown(self) -> None:
        """Return when the frames of all steps so far are in the outbox."""
        self._hand_over()
        await self._to_encode.join()

    async def _send(self) -> None:
        try:
            while True:
                entry = await self._outbox.get()
                if isinstance(entry, str):
                    await self._websocket.send_text(entry)
                else:
                    await self._send_frame(entry)
        except (WebSocketDisconnect, RuntimeError):  # the latter if the server has closed it meanwhile
            raise Ending(None) from None

    async def _send_frame(self, frame: OutgoingFrame) -> None:
        if frame.preface is not None:
            await self._websocket.send_text(frame.preface)
        if frame.action.shown_after is None:
            frame.action.shown_after = time.monotonic() - frame.action.arrived
        for place, picture in enumerate(frame.pictures):
            await self._websocket.send_text(picture_text(frame, place))
            await self._websocket.send_bytes(picture.data)

    def _tell(self, kind: str, **fields: Any) -> None:
        self._outbox.put(to_text({"type": kind, **fields}))

    def _tell_error(
        self, error: ApiError | InvalidInput, seq: int | None = None, retry_after: float | None = None
    ) -> None:
        self._outbox.put(error_text(error, self._request_id, seq, retry_after))


def _as_told(error: ApiError | WorldCacheError) -> ApiError | InvalidInput:
    """What a client may know of an error."""
    if isinstance(error, (ApiError, InvalidInput)):
        return error
    logger.error("a step failed", exc_info=error)
    return ApiError(500, "internal_error", "the server failed; try again later")
