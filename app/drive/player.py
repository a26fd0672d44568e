"""A client that drives one session over a WebSocket, and notes when it sees what."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from worldcache.errors import WorldCacheError

PATIENCE_SECONDS = 120.0
"""How long a message may be waited for."""


@dataclass
class Track:
    """What one connection has shown. Times by ``time.monotonic()``.

    Attributes:
        sent: when each action was sent, by its number.
        shown: when the first picture of the first frame that shows it had come.
        told: seconds from its arrival to that picture, by the server.
        computed: seconds that the step took to denoise and decode which shows it first.
        frames: when each frame's first picture had come.
        gaps: frames whose index was not the next one.
        dropped: frames that the server dropped.
        errors: what the server could not do.
    """

    sent: dict[int, float] = field(default_factory=dict)
    shown: dict[int, float] = field(default_factory=dict)
    told: dict[int, float] = field(default_factory=dict)
    computed: dict[int, float] = field(default_factory=dict)
    frames: list[float] = field(default_factory=list)
    gaps: int = 0
    dropped: int = 0
    errors: list[str] = field(default_factory=list)

    @property
    def unseen(self) -> list[int]:
        """Actions that no frame has shown."""
        return [seq for seq in self.sent if seq not in self.shown]

    @property
    def waits(self) -> list[float]:
        """Seconds from sending an action to its first frame."""
        return [at - self.sent[seq] for seq, at in self.shown.items()]

    @property
    def ratios(self) -> list[float]:
        """The same, over the compute of the step that shows it."""
        return [(at - self.sent[seq]) / self.computed[seq] for seq, at in self.shown.items()]


class Player:
    """One connection.

    Args:
        connection: open; its first message has been read.
        first_modality: with which each frame begins.
        frames_per_step: of the session.
        actions: to choose from.
        seed: of the choices.
    """

    def __init__(
        self,
        connection: ClientConnection,
        first_modality: str,
        frames_per_step: int,
        actions: Sequence[str],
        seed: int,
    ) -> None:
        self._connection, self._first = connection, first_modality
        self._frames_per_step, self._actions = frames_per_step, actions
        self._random = random.Random(seed)
        self._numbers = itertools.count()
        self._next_index = 0
        self._step_seconds = 0.0
        self.track = Track()

    async def lockstep(self, seconds: float) -> None:
        """An action, all that it leads to, the next action, and so on."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self.track.errors:
            await self._act()
            wanted = len(self.track.frames) + self._frames_per_step
            while len(self.track.frames) < wanted and not self.track.errors:
                await self._hear()
        await self._finish()

    async def free(self, seconds: float, pause: float) -> None:
        """Actions at times of their own while the world goes on.

        Args:
            pause: mean seconds between two actions, evenly spread from a half to one and a half of it.
        """
        acting = asyncio.create_task(self._act_at_times(seconds, pause))
        try:
            while not acting.done() and not self.track.errors:
                await self._hear()
        finally:
            acting.cancel()
            await asyncio.wait({acting})
        until = time.monotonic() + PATIENCE_SECONDS
        while self.track.unseen and not self.track.errors and time.monotonic() < until:
            await self._hear()
        await self._finish()

    async def watch(self, seconds: float) -> None:
        """One action, and whatever follows."""
        await self._act()
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self.track.errors:
            await self._hear()
        await self._finish()

    async def _act_at_times(self, seconds: float, pause: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            await self._act()
            await asyncio.sleep(pause * self._random.uniform(0.5, 1.5))

    async def _act(self) -> None:
        seq = next(self._numbers)
        self.track.sent[seq] = time.monotonic()
        await self._say(type="action", action=self._random.choice(self._actions), seq=seq)

    async def _finish(self) -> None:
        """Read the frames that are on their way."""
        await self._say(type="pause")
        await self._say(type="reset")  # is answered behind them
        while await self._hear() != "reset":
            pass

    async def _say(self, **message: Any) -> None:
        await self._connection.send(json.dumps(message))

    async def _hear(self) -> str:
        """Note one message; returns its type."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            message = json.loads(await self._connection.recv())
            if message["type"] == "frame":
                await self._connection.recv()
                self._note(message, time.monotonic())
            elif message["type"] == "step":
                self._step_seconds = step_seconds(message["stats"])
            elif message["type"] == "error":
                self.track.errors.append(f"{message['error']['code']}: {message['error']['message']}")
        return str(message["type"])

    def _note(self, frame: Mapping[str, Any], now: float) -> None:
        if frame["modality"] != self._first:
            return
        track, seq = self.track, frame["seq"]
        track.frames.append(now)
        track.gaps += frame["index"] != self._next_index
        self._next_index = frame["index"] + 1
        track.dropped += frame["dropped"]
        if seq not in track.shown:
            track.shown[seq] = now
            track.told[seq] = frame["action_to_frame_ms"] / 1000
            track.computed[seq] = self._step_seconds


def step_seconds(stats: Mapping[str, Any]) -> float:
    """What a step took to denoise and decode."""
    return float(stats["denoise_ms"] + stats["decode_ms"]) / 1000


@asynccontextmanager
async def playing(
    http: httpx.AsyncClient, body: Mapping[str, Any], mode: str, seed: int
) -> AsyncIterator[Player]:
    """A player of a new session.

    Args:
        http: with the server's address and key.
        body: of the session.
        mode: ``lockstep`` or ``free``.
        seed: of the player's choices.

    Raises:
        WorldCacheError: the connection broke, or nothing came for too long.
    """
    session = (await http.post("/v1/sessions", json=body)).raise_for_status().json()
    base = str(http.base_url).rstrip("/").replace("http", "ws", 1)
    key = http.headers.get("Authorization")
    try:
        async with connect(
            f"{base}{session['websocket']}?mode={mode}&details=true",
            additional_headers={"Authorization": key} if key else None,
            compression=None,
            proxy=None,
            max_size=None,
        ) as connection:
            ready = json.loads(await connection.recv())
            names = session["action_space"]["names"]
            yield Player(connection, ready["modalities"][0], session["frames_per_step"], names, seed)
    except (WebSocketException, TimeoutError, OSError) as error:
        raise WorldCacheError(f"the connection to {session['id']} broke: {error!r}") from error
    finally:
        await http.delete(f"/v1/sessions/{session['id']}")
