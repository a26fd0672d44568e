"""How sessions come into being, at a start or from a snapshot, and how a snapshot is taken of one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from anyio import to_thread

from app.auth import Caller
from app.dispatcher import InProcessDispatcher
from app.models import ModelHost
from app.schemas import SessionBody, SnapshotBody
from app.session_reader import SessionReader
from app.session_store import Session
from app.snapshots import export_state, import_state, read_arrays, snapshot_of
from worldcache.core import RolloutState
from worldcache.models.base import WorldModel

ResultT = TypeVar("ResultT")


class SessionOpener:
    """Reads observations and contexts, and writes contexts down, where torch runs for their model.

    Args:
        models: are leased meanwhile.
        dispatcher: has the device's thread.
        reader: understands what is sent.
    """

    def __init__(self, models: ModelHost, dispatcher: InProcessDispatcher, reader: SessionReader) -> None:
        self._models, self._dispatcher, self._reader = models, dispatcher, reader

    async def begin(self, body: SessionBody, caller: Caller) -> Session:
        """A session at frame 0."""
        lease = await self._models.lease(body.model, allowed=caller.models)
        try:
            model = lease.model
            session = self._reader.read_session(body, body.frames_per_step, model.info, caller)
            observation = await self._reader.read_observation(body.observation, model.info)
            conditioning = await self._reader.read_conditioning(body.conditioning, model.info)
            context = await self._on_device(model, partial(model.begin, observation, conditioning))
            session.start = RolloutState(context, 0)
            return session
        finally:
            lease.release()

    async def restore(self, body: SnapshotBody, caller: Caller) -> Session:
        """A session where a snapshot was taken."""
        lease = await self._models.lease(body.model, allowed=caller.models)
        try:
            model = lease.model
            session = self._reader.read_session(body, body.frames_per_step, model.info, caller)
            session.actions = self._reader.read_past(body, model.info)
            session.start = await self._import(model, body.start, 0, "start")
            now = await self._import(model, body.context, body.frames, "context")
            if now.frames:
                session.history.append(now)
            return session
        finally:
            lease.release()

    async def snapshot(self, session: Session) -> SnapshotBody:
        """The session as it is, as a document.

        Raises:
            InvalidInput: the model keeps its contexts to itself.
        """
        state, actions = session.state, session.actions.copy()
        with session.in_use():
            lease = await self._models.lease(session.model)
            try:
                start, context = [
                    await self._on_device(lease.model, partial(export_state, lease.model, one))
                    for one in (session.start, state)
                ]
            finally:
                lease.release()
        return snapshot_of(session, actions, state.frames, start, context)

    async def _import(self, model: WorldModel, text: str, frames: int, param: str) -> RolloutState:
        """The state that a snapshot's field holds."""
        arrays = await to_thread.run_sync(read_arrays, text, param)
        return await self._on_device(model, partial(import_state, model, arrays, frames, param))

    async def _on_device(self, model: WorldModel, function: Callable[[], ResultT]) -> ResultT:
        """Run a function where torch runs for a model's device."""
        return await asyncio.wrap_future(self._dispatcher.call(str(model.device), function))
