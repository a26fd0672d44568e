"""Live connections for ordinary code; :mod:`worldcache.client.async_live` is the same for asyncio."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from worldcache.client import session_operations as operations
from worldcache.client.errors import ConnectionFailed, WaitedTooLong
from worldcache.client.live import Command, LiveProtocol, import_websockets
from worldcache.client.live_types import LiveMessage
from worldcache.client.session_state import SessionState
from worldcache.client.sync_link import Link

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection


class LiveConnection:
    """A session that is driven over a WebSocket: send actions, iterate over what comes.

    It connects when it is entered or first used, and again when the connection is lost: see :class:`Ready`.
    What the server does not do comes as a :class:`Refusal`; what ends the connection is raised. One thread
    may send while another one iterates.
    """

    def __init__(self, link: Link, state: SessionState, protocol: LiveProtocol) -> None:
        self._link, self._state, self._protocol = link, state, protocol
        exceptions, client = import_websockets("exceptions"), import_websockets("sync.client")
        self._connect: Callable[..., ClientConnection] = client.connect
        self._connection_closed: type[Exception] = exceptions.ConnectionClosed
        self._failures: tuple[type[Exception], ...] = (OSError, EOFError, exceptions.WebSocketException)
        self._socket: ClientConnection | None = None
        self._lock = threading.Lock()
        self._settled = self._left = self._ended = False

    def send(self, action: Any) -> int:
        """Do something, and return the number that its frames will have as ``seq``.

        In lockstep it is a step of its own, held for all frames of that. Free, it is one frame's, and the
        last one is held until the next.
        """
        return self._act(self._protocol.action(action))

    def send_step(self, actions: Sequence[Any]) -> int:
        """Do several things in one step, at most ``frames_per_step``, one a frame; returns their number."""
        return self._act(self._protocol.actions(actions))

    def pause(self) -> None:
        """Begin no step until :meth:`resume`; answered by :class:`Paused`."""
        self._send(self._protocol.command("pause"))

    def resume(self) -> None:
        """Go on; answered by :class:`Resumed`."""
        self._send(self._protocol.command("resume"))

    def reset(self) -> None:
        """Go back to frame 0 and forget what waits; answered by :class:`Rewound`."""
        self._send(self._protocol.command("reset"))

    def rewind(self, to_frame: int) -> None:
        """Go back to the end of a step and forget what waits; answered by :class:`Rewound`."""
        self._send(self._protocol.command("rewind", to_frame=to_frame))

    def cache(self, cache: str | Mapping[str, Any] | None) -> None:
        """Use another cache from the next step on; answered by :class:`CacheChanged`."""
        self._send(self._protocol.command("cache", cache=cache))

    def ping(self, id: int | str | None = None) -> None:
        """Ask whether the server is there; answered by :class:`Pong`."""
        self._send(self._protocol.command("ping", id=id))

    def receive(self, timeout: float | None = None) -> LiveMessage:
        """The next message.

        Args:
            timeout: seconds to wait for it.

        Raises:
            WaitedTooLong: there was none.
            NotFound: the session was closed or has expired.
            TakenOver: another connection drives the session.
            ApiError: the server refused the connection.
            ConnectionFailed: the server does not answer, or this is closed.
        """
        clock = self._link.exchange.clock
        until = None if timeout is None else clock() + timeout
        while True:
            socket = self._standing()
            try:
                data = socket.recv(None if until is None else max(0.0, until - clock()))
            except TimeoutError:
                raise WaitedTooLong(f"nothing came within {timeout:g} s") from None
            except self._connection_closed as error:
                self._lost(socket, error)
                continue
            message = self._protocol.receive(data)
            if message is not None:
                return message

    def close(self) -> None:
        """Close the connection; the session stays open."""
        self._left = self._ended = True
        if self._socket is not None:
            self._socket.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> LiveMessage:
        if self._ended:
            raise StopIteration
        try:
            return self.receive()
        except ConnectionFailed:
            if self._left:
                raise StopIteration from None
            raise

    def __enter__(self) -> Self:
        self._standing()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _act(self, command: Command) -> int:
        assert command.seq is not None
        self._send(command)
        return command.seq

    def _send(self, command: Command) -> None:
        while True:
            socket = self._standing()
            try:
                socket.send(command.text)
            except self._connection_closed as error:
                self._lost(socket, error)
            else:
                self._protocol.sent(command)
                return

    def _standing(self) -> ClientConnection:
        """A connection that stands, as far as is known."""
        with self._lock:
            self._check_open()
            if not self._settled:
                self._link.run(operations.settle(self._link.exchange, self._state))
                self._settled = True
            while self._socket is None:
                try:
                    self._socket = self._open()
                except self._failures as error:
                    self._wait_after(error)
                self._check_open()
            return self._socket

    def _open(self) -> ClientConnection:
        # Entered, as only that will connect in later versions; close() is all that leaving does.
        socket = self._connect(**self._protocol.arguments()).__enter__()
        try:
            for text in self._protocol.connected():
                socket.send(text)
            self._check_open()
        except BaseException:
            socket.close()
            raise
        return socket

    def _lost(self, socket: ClientConnection, error: Exception) -> None:
        """A connection does not stand any more; return when it is time for another one."""
        with self._lock:
            self._check_open()
            if self._socket is socket:
                self._socket = None
                self._wait_after(error)

    def _wait_after(self, error: Exception) -> None:
        try:
            delay = self._protocol.pause(error)
        except Exception:
            self._ended = True
            raise
        self._link.sleep(delay)

    def _check_open(self) -> None:
        if self._ended:
            raise ConnectionFailed("this live connection is closed; open another one")
