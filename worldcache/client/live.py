"""A client's side of a session's WebSocket, over as many connections as it takes; does no input or output."""

from __future__ import annotations

import importlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import httpx

from worldcache.client.body import encode_json
from worldcache.client.errors import (
    ApiError,
    ClientError,
    ConnectionFailed,
    NotFound,
    TakenOver,
    UnexpectedAnswer,
    WebSocketsMissing,
)
from worldcache.client.exchange import CONNECT_SECONDS, Exchange, Reply
from worldcache.client.live_types import (
    LiveFrame,
    LiveMessage,
    Paused,
    Ready,
    Refusal,
    Resumed,
    read_message,
    read_object,
)
from worldcache.client.retries import is_temporary
from worldcache.client.session_state import SessionState, session_path

if TYPE_CHECKING:
    from websockets.exceptions import ConnectionClosed, InvalidStatus

Mode: TypeAlias = Literal["lockstep", "free"]

TAKEN_OVER = 4409
SESSION_GONE = 4410
OUR_FAULT = (1002, 1003, 1007, 1008, 1009)
"""Codes that say that the messages of this client cannot be read."""
HELD = 128
"""Latest actions that are remembered, in case that some are refused; more than the server lets wait."""
MAX_MESSAGE = 64 * 2**20
"""Bytes of the largest picture that is received."""


@dataclass(frozen=True)
class Command:
    """Something to be sent; ``seq`` of actions only."""

    kind: str
    text: str
    seq: int | None = None


class LiveProtocol:
    """Says what to send and when to connect again, and takes in what comes.

    Args:
        exchange: of the client.
        state: of the session.
        mode: as the server takes it, like the others.
        modalities: those to be sent; the session's if left out.
        format: ``png`` or ``jpeg``; the session's if left out.
        details: a message about each step.
    """

    def __init__(
        self,
        exchange: Exchange,
        state: SessionState,
        mode: Mode,
        modalities: Sequence[str] | None,
        format: str | None,
        details: bool,
    ) -> None:
        names = None if modalities is None else ",".join(modalities)
        query = {"mode": mode, "modalities": names, "format": format, "details": "true" if details else None}
        self._exchange, self._state, self._mode = exchange, state, mode
        self._query = {name: value for name, value in query.items() if value is not None}
        self._backoff = exchange.backoff()
        self._ready_at: float | None = None
        self._seq = self._shown = -1
        self._unanswered: deque[int] = deque()
        self._held: deque[Command] = deque(maxlen=HELD)
        self._paused = False
        self._frame: dict[str, Any] | None = None
        self._lost: tuple[int, ...] = ()

    def arguments(self) -> dict[str, Any]:
        """What websockets needs to connect."""
        url = httpx.URL(self._exchange.base_url.rstrip("/") + session_path(self._state.data.id, "ws"))
        url = url.copy_with(scheme="wss" if url.scheme == "https" else "ws", params=self._query)
        return {
            "uri": str(url),
            "additional_headers": self._exchange.headers(),
            "user_agent_header": None,
            "compression": None,
            "max_size": MAX_MESSAGE,
            "open_timeout": min(self._exchange.timeout, CONNECT_SECONDS),
        }

    def connected(self) -> list[str]:
        """A connection stands; what to say first, so that a world that ran freely goes on as it was."""
        self._frame, self._state.stale = None, True
        self._lost += tuple(self._unanswered)
        self._unanswered.clear()
        pause = [_encode("pause").text] if self._paused else []
        return [*pause, self._held[-1].text] if self._held else pause

    def action(self, value: Any) -> Command:
        """One action, and its number."""
        self._seq += 1
        return _encode("action", self._seq, action=value, seq=self._seq)

    def actions(self, values: Sequence[Any]) -> Command:
        """A step's actions, and their number."""
        self._seq += 1
        return _encode("action", self._seq, actions=values, seq=self._seq)

    def command(self, kind: str, **fields: Any) -> Command:
        """Anything else."""
        return _encode(kind, **fields)

    def sent(self, command: Command) -> None:
        """It was sent."""
        if command.seq is not None:
            if command.seq > self._shown:
                self._unanswered.append(command.seq)
            if self._mode == "free":
                self._held.append(command)
        elif command.kind in ("reset", "rewind"):
            self._held.clear()
            self._unanswered.clear()
        elif command.kind in ("pause", "resume"):
            self._paused = command.kind == "pause"

    def receive(self, data: str | bytes) -> LiveMessage | None:
        """The message that this completes, if it does.

        Raises:
            UnexpectedAnswer: it is none of this API.
        """
        if isinstance(data, str):
            fields, image = read_object(data), b""
            if self._frame is not None:
                raise UnexpectedAnswer("a frame has no picture")
            if fields.get("type") == "frame":
                self._frame = fields
                return None
        elif self._frame is None:
            raise UnexpectedAnswer("a picture belongs to no frame")
        else:
            fields, image, self._frame = self._frame, bytes(data), None
        message = read_message(fields, image, self._lost)
        self._note(message)
        return message

    def pause(self, error: Exception) -> float:
        """Seconds until the next connection, after one that failed or was lost.

        Raises:
            ApiError: refused for good, or the session is closed.
            TakenOver: another connection drives the session.
            ConnectionFailed: it makes no sense to go on trying.
        """
        failure, again, retry_after = self._read_trouble(error)
        longest = self._exchange.retries.longest_delay
        if self._ready_at is not None and self._exchange.clock() - self._ready_at >= longest:
            self._backoff.reset()
        self._ready_at = None
        delay = self._backoff.next_delay(retry_after) if again else None
        if delay is None:
            raise failure
        return delay

    def _note(self, message: LiveMessage | None) -> None:
        self._state.stale = True
        if isinstance(message, Ready):
            self._ready_at, self._lost = self._exchange.clock(), ()
            return
        self._backoff.reset()
        if isinstance(message, LiveFrame):
            self._answered(message.seq)
        elif isinstance(message, Refusal):
            if message.seq is not None and message.retry_after is None:
                self._forget(message.seq)
        elif isinstance(message, Paused | Resumed):
            self._paused = isinstance(message, Paused)

    def _answered(self, seq: int) -> None:
        self._shown = max(self._shown, seq)
        while self._unanswered and self._unanswered[0] <= seq:
            self._unanswered.popleft()

    def _forget(self, seq: int) -> None:
        """An action was refused: neither is it waited for, nor is it held."""
        self._unanswered = deque(other for other in self._unanswered if other != seq)
        self._held = deque((other for other in self._held if other.seq != seq), HELD)

    def _read_trouble(self, error: Exception) -> tuple[ClientError, bool, float | None]:
        """What it is, whether to connect again, and how many seconds later at least."""
        exceptions = import_websockets("exceptions")
        failure: ClientError
        if isinstance(error, exceptions.InvalidStatus):
            failure = refusal = _refused(error)
            return refusal, is_temporary(refusal), refusal.retry_after
        path = session_path(self._state.data.id, "ws")
        failure, again = ConnectionFailed(f"{path}: {str(error) or type(error).__name__}"), True
        if isinstance(error, exceptions.ConnectionClosed):
            failure, again = _closed(path, error)
        failure.__cause__ = error
        return failure, again, None


def import_websockets(module: str) -> ModuleType:
    """A module of websockets.

    Raises:
        WebSocketsMissing: it is not installed.
    """
    try:
        return importlib.import_module(f"websockets.{module}")
    except ImportError:
        message = "live connections need websockets: pip install 'worldcache[client]'; steps do without"
        raise WebSocketsMissing(message) from None


def _encode(kind: str, number: int | None = None, **fields: Any) -> Command:
    return Command(kind, encode_json({"type": kind, **fields}).decode(), number)


def _refused(error: InvalidStatus) -> ApiError:
    response = error.response
    headers = httpx.Headers(list(response.headers.raw_items()))
    return Reply(response.status_code, headers, bytes(response.body or b"")).error()


def _closed(path: str, error: ConnectionClosed) -> tuple[ClientError, bool]:
    """Why a connection was closed, and whether to connect again."""
    code, reason = (error.rcvd.code, error.rcvd.reason) if error.rcvd else (0, "the connection was lost")
    if code == TAKEN_OVER:
        return TakenOver(reason or "another connection to this session took over"), False
    if code == SESSION_GONE:
        return NotFound(410, "session_gone", reason or "the session is closed"), False
    return ConnectionFailed(f"{path}: {reason or 'closed by the server'} ({code})"), code not in OUR_FAULT
