"""What waits to be sent to a client that may read slowly: texts all of them, frames the latest ones."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from app.action_line import SentAction

MAX_TEXTS = 128
"""Texts that may wait before nothing more is read from the client that they answer."""


@dataclass(frozen=True)
class Picture:
    """One modality of a frame.

    Attributes:
        header: what is said of it, without what is known only when it is sent.
        data: the encoded image.
    """

    header: Mapping[str, Any]
    data: bytes


@dataclass(eq=False)
class OutgoingFrame:
    """A frame on its way.

    Attributes:
        pictures: of each modality.
        action: the last one that it shows.
        step: any object that stands for its step.
        preface: a text that comes before the step's first frame that is sent.
        dropped: frames just before it that were dropped.
    """

    pictures: Sequence[Picture]
    action: SentAction
    step: object
    preface: str | None = None
    dropped: int = 0


Entry: TypeAlias = str | OutgoingFrame


class Outbox:
    """In order; if too many frames wait, the oldest ones are dropped. For one reader, on one event loop.

    Args:
        max_frames: that may wait.
        on_dropped: called for each frame that is dropped.
    """

    def __init__(self, max_frames: int, on_dropped: Callable[[], None] = lambda: None) -> None:
        self._max_frames, self._on_dropped = max_frames, on_dropped
        self._entries: deque[Entry] = deque()
        self._frames = 0
        self._busy = False
        self._changed = asyncio.Event()

    def put(self, text: str) -> None:
        """Send a text in its turn."""
        self._entries.append(text)
        self._tell()

    def put_frame(self, frame: OutgoingFrame) -> None:
        """Send a frame in its turn, unless newer ones push it out."""
        self._entries.append(frame)
        self._frames += 1
        if self._frames > self._max_frames:
            self._drop_oldest()
        self._tell()

    async def get(self) -> Entry:
        """The next entry; whoever asks has sent the one before."""
        self._busy = False
        self._tell()
        await self._until(lambda: bool(self._entries))
        self._busy = True
        entry = self._entries.popleft()
        self._frames -= isinstance(entry, OutgoingFrame)
        return entry

    async def room(self) -> None:
        """Return when texts do not pile up."""
        await self._until(lambda: len(self._entries) - self._frames < MAX_TEXTS)

    async def flushed(self) -> None:
        """Return when everything has been sent."""
        await self._until(lambda: not self._entries and not self._busy)

    def _drop_oldest(self) -> None:
        place, oldest = next(self._waiting_frames())
        del self._entries[place]
        self._frames -= 1
        _, heir = next(self._waiting_frames())
        heir.dropped += oldest.dropped + 1
        if heir.step is oldest.step:
            heir.preface = oldest.preface
        self._on_dropped()

    def _waiting_frames(self) -> Iterator[tuple[int, OutgoingFrame]]:
        for place, entry in enumerate(self._entries):
            if isinstance(entry, OutgoingFrame):
                yield place, entry

    async def _until(self, true: Callable[[], bool]) -> None:
        while not true():
            await self._changed.wait()

    def _tell(self) -> None:
        """Wake those who wait, to look again."""
        self._changed.set()
        self._changed = asyncio.Event()
