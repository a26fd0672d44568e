"""Live connections for asyncio; :mod:`worldcache.client.sync_live` is the same for ordinary code."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from worldcache.client import session_operations as operations
from worldcache.client.async_link import AsyncLink
from worldcache.client.errors import ConnectionFailed, WaitedTooLong
from worldcache.client.live import Command, LiveProtocol, import_websockets
from worldcache.client.live_types import LiveMessage
from worldcache.client.session_state import SessionState

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection


class AsyncLiveConnection:
    """A session that is driven over a WebSocket: send actions, iterate over what comes.

    It connects when it is entered or first used, and again when the connection is lost: see :class:`Ready`.
    What the server does not do comes as a :class:`Refusal`; what ends the connection is raised. One task
    may send while another one iterates.
    """

    def __init__(self, link: AsyncLink, state: SessionState, protocol: LiveProtocol) -> None:
        self._link, self._state, self._protocol = link, state, protocol
        exceptions, client = import_websockets("exceptions"), import_websockets("asyncio.client")
        self._connect: Callable[..., Awaitable[ClientConnection]] = client.connect
        self._connection_closed: type[Exception] = exceptions.ConnectionClosed
        self._failures: tuple[type[Exception], ...] = (OSError, EOFError, exceptions.WebSocketException)
        self._socket: ClientConnection | None = None
        self._lock = asyncio.Lock()
        self._settled = self._left = self._ended = False

    async def send(self, action: Any) -> int:
        """Do something, and return the number that its frames will have as ``seq``.

        In lockstep it is a step of its own, held for all frames of that. Free, it is one frame's, and the
        last one is held until the next.
        """
        return await self._act(self._protocol.action(action))

    async def send_step(self, actions: Sequence[Any]) -> int:
        """Do several things in one step, at most ``frames_per_step``, one a frame; returns their number."""
        return await self._act(self._protocol.actions(actions))

    async def pause(self) -> None:
        """Begin no step until :meth:`resume`; answered by :class:`Paused`."""
        await self._send(self._protocol.command("pause"))

    async def resume(self) -> None:
        """Go on; answered by :class:`Resumed`."""
        await self._send(self._protocol.command("resume"))

    async def reset(self) -> None:
        """Go back to frame 0 and forget what waits; answered by :class:`Rewound`."""
        await self._send(self._protocol.command("reset"))

    async def rewind(self, to_frame: int) -> None:
        """Go back to the end of a step and forget what waits; answered by :class:`Rewound`."""
        await self._send(self._protocol.command("rewind", to_frame=to_frame))

    async def cache(self, cache: str | Mapping[str, Any] | None) -> None:
        """Use another cache from the next step on; answered by :class:`CacheChanged`."""
        await self._send(self._protocol.command("cache", cache=cache))

    async def ping(self, id: int | str | None = None) -> None:
        """Ask whether the server is there; answered by :class:`Pong`."""
        await self._send(self._protocol.command("ping", id=id))

    async def receive(self, timeout: float | None = None) -> LiveMessage:
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
        try:
            async with asyncio.timeout(timeout):
                return await self._receive()
        except TimeoutError:
            raise WaitedTooLong(f"nothing came within {timeout:g} s") from None

    async def aclose(self) -> None:
        """Close the connection; the session stays open."""
        self._left = self._ended = True
        if self._socket is not None:
            await self._socket.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> LiveMessage:
        if self._ended:
            raise StopAsyncIteration
        try:
            return await self.receive()
        except ConnectionFailed:
            if self._left:
                raise StopAsyncIteration from None
            raise

    async def __aenter__(self) -> Self:
        await self._standing()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _receive(self) -> LiveMessage:
        while True:
            socket = await self._standing()
            try:
                data = await socket.recv()
            except self._connection_closed as error:
                await self._lost(socket, error)
                continue
            message = self._protocol.receive(data)
            if message is not None:
                return message

    async def _act(self, command: Command) -> int:
        assert command.seq is not None
        await self._send(command)
        return command.seq

    async def _send(self, command: Command) -> None:
        while True:
            socket = await self._standing()
            try:
                await socket.send(command.text)
            except self._connection_closed as error:
                await self._lost(socket, error)
            else:
                self._protocol.sent(command)
                return

    async def _standing(self) -> ClientConnection:
        """A connection that stands, as far as is known."""
        async with self._lock:
            self._check_open()
            if not self._settled:
                await self._link.run(operations.settle(self._link.exchange, self._state))
                self._settled = True
            while self._socket is None:
                try:
                    self._socket = await self._open()
                except self._failures as error:
                    await self._wait_after(error)
                self._check_open()
            return self._socket

    async def _open(self) -> ClientConnection:
        socket = await self._connect(**self._protocol.arguments())
        try:
            for text in self._protocol.connected():
                await socket.send(text)
            self._check_open()
        except BaseException:
            await socket.close()
            raise
        return socket

    async def _lost(self, socket: ClientConnection, error: Exception) -> None:
        """A connection does not stand any more; return when it is time for another one."""
        async with self._lock:
            self._check_open()
            if self._socket is socket:
                self._socket = None
                await self._wait_after(error)

    async def _wait_after(self, error: Exception) -> None:
        try:
            delay = self._protocol.pause(error)
        except Exception:
            self._ended = True
            raise
        await self._link.sleep(delay)

    def _check_open(self) -> None:
        if self._ended:
            raise ConnectionFailed("this live connection is closed; open another one")
