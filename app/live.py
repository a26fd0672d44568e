"""A rollout that has not ended, in the process that runs it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from app.dispatcher import Job
from app.store import Checkpoint, RolloutRecord
from worldcache.core import RolloutState

Export: TypeAlias = Callable[[RolloutState, int], Awaitable[Checkpoint | None]]
"""Writes a state down, given how many chunks led to it; ``None`` if the model does not offer that."""


@dataclass(eq=False)
class LiveRollout:
    """A rollout on its way.

    Attributes:
        task: follows the job's events.
        waiters: clients that wait for the end.
        detached: it was asked for asynchronously, so it goes on although nobody waits.
        paced: its deadline chooses the policy, chunk by chunk.
        waited: seconds from its acceptance until it was handed to this process's dispatcher; ``None`` if that
            was at once.
        first_chunk: index in the record of the first chunk that the job computes.
        export: writes its states down for others; ``None`` if nobody else could go on with it.
        released: it was let go of, for others to go on with.
        lost: others may have gone on with it: nothing more may be written.
    """

    record: RolloutRecord
    job: Job
    task: asyncio.Task[None] = field(init=False)
    waiters: int = 0
    detached: bool = False
    paced: bool = False
    waited: float | None = None
    first_chunk: int = 0
    export: Export | None = None
    released: bool = False
    lost: bool = False
    _change: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    def changed(self) -> None:
        """The record has changed: wake everyone who waits for that."""
        self._change.set()
        self._change = asyncio.Event()

    async def change(self) -> None:
        """Return at the next change."""
        await self._change.wait()

    def release(self) -> None:
        """Stop, so that others can go on behind the last chunk that was kept."""
        self.released = True
        self.job.cancel()

    def lose(self) -> None:
        """Stop, and write nothing more."""
        self.lost = True
        self.job.cancel()
