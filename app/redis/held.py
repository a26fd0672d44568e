"""What a process runs: rollouts that it alone may write, and what Redis has not heard of them yet."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from app.store import Checkpoint, RolloutRecord


@dataclass(eq=False)
class Held:
    """A rollout of this process.

    Attributes:
        token: that it is written with.
        known: Redis has heard of it.
        changed: the record has changed since Redis heard of it.
        progress: a chunk was finished since then.
        checkpoint: that Redis has not heard of.
        parked: why it is given up for good.
        data: its artifacts that were made here.
        unsaved: names of those that Redis has not heard of, each with the names that it replaces.
    """

    record: RolloutRecord
    token: str
    known: bool = True
    changed: bool = False
    progress: bool = False
    checkpoint: Checkpoint | None = None
    parked: str = ""
    data: dict[str, bytes] = field(default_factory=dict)
    unsaved: dict[str, tuple[str, ...]] = field(default_factory=dict)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _chunks: int = field(init=False)

    def __post_init__(self) -> None:
        self._chunks = len(self.record.chunks)

    @property
    def saved(self) -> bool:
        """Redis has heard of everything."""
        return self.known and not self.changed and not self.unsaved

    def note(self, checkpoint: Checkpoint | None) -> None:
        """The record has changed."""
        self.changed = True
        self.progress |= len(self.record.chunks) > self._chunks
        self._chunks = len(self.record.chunks)
        self.checkpoint = checkpoint or self.checkpoint

    def keep(self, name: str, data: bytes, replacing: Sequence[str]) -> None:
        """An artifact was made."""
        for old in replacing:
            self.data.pop(old, None)
            self.unsaved.pop(old, None)
        self.data[name] = data
        self.unsaved[name] = tuple(replacing)

    def forget(self) -> None:
        """Redis has lost everything; what is left is here."""
        self.known, self.changed = False, True
        self.unsaved = {name: () for name in self.data}

    @property
    def size(self) -> int:
        """Bytes of the artifacts."""
        return sum(len(data) for data in self.data.values())
