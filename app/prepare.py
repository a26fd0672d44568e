"""Before a rollout is handed to the dispatcher: what exactly is run, and whose choice that was."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from anyio import to_thread

from app.audit import Choice, PresetGuard
from app.auth import Caller
from app.deadlines import DeadlinePlanner
from app.dispatcher import Dispatcher
from app.errors import ApiError
from app.requests import RequestReader
from app.schemas import RolloutBody
from app.settings import Settings
from app.snapshots import import_state, pack_state, unpack_arrays
from app.store import Checkpoint, RolloutRecord
from app.work import Order
from worldcache.core import RolloutState
from worldcache.engine.rollout import RolloutRequest
from worldcache.errors import InvalidInput
from worldcache.models.base import WorldModel

logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Prepared:
    """A rollout that can be handed in.

    Attributes:
        free: whether the policy was the deadline's to choose.
    """

    request: RolloutRequest
    choice: Choice
    free: bool


class Preparer:
    """Makes the engine's requests, of bodies and of orders.

    Args:
        settings: hold the limits.
        dispatcher: knows what rollouts take.
        guard: knows which presets are replaced.
    """

    def __init__(self, settings: Settings, dispatcher: Dispatcher, guard: PresetGuard) -> None:
        self._dispatcher, self._guard, self._reader = dispatcher, guard, RequestReader(settings)
        self._deadlines = DeadlinePlanner(
            dispatcher, fewest=settings.deadline_min_full_steps, margin=settings.deadline_margin
        )

    async def prepare(self, body: RolloutBody, caller: Caller, model: WorldModel) -> Prepared:
        """What will be run, and whose choice that was: the client's, the audits' or the deadline's.

        Raises:
            ApiError, InvalidInput: it cannot be.
        """
        choice = self._guard.choose(body.cache, model.info)
        served = body.model_copy(update={"cache": choice.cache})
        request = await self._reader.read(served, model.info, caller.client)
        if body.deadline_ms is None:
            return Prepared(request, choice, False)
        deadline, free = caller.arrived + body.deadline_ms / 1000, body.cache in (None, "auto")
        request = self._deadlines.plan(model, request, deadline, choose=free)
        return Prepared(request, Choice(body.cache, None) if free else choice, free)

    async def resume(
        self, record: RolloutRecord, order: Order, checkpoint: Checkpoint | None, model: WorldModel
    ) -> tuple[RolloutRequest, int]:
        """What is left of a rollout that was accepted before, and how many chunks that goes on behind.

        A deadline is kept to as well as can be; that it is far off is no reason to refuse any more.

        Raises:
            ApiError, InvalidInput: it cannot be run here.
        """
        request, chunks = await self._reader.read(order.body, model.info, order.client), 0
        state = None if checkpoint is None else await self._restore(model, checkpoint)
        if checkpoint is not None and state is not None:
            actions = request.actions[state.frames :]
            request = replace(request, observation=None, state=state, actions=actions)
            chunks = checkpoint.chunks
        if record.deadline_at is None:
            return request, chunks
        deadline = time.monotonic() + record.deadline_at - time.time()
        try:
            return self._deadlines.plan(model, request, deadline, choose=order.free), chunks
        except ApiError:
            return replace(request, deadline=deadline), chunks

    async def export(self, model: WorldModel, state: RolloutState, chunks: int) -> Checkpoint | None:
        """A state written down; ``None`` if the model does not offer that."""
        try:
            data = await self._on_device(model, partial(pack_state, model, state))
        except InvalidInput as error:
            if error.code != "not_supported":
                raise
            return None
        return Checkpoint(data, state.frames, chunks)

    async def _restore(self, model: WorldModel, checkpoint: Checkpoint) -> RolloutState | None:
        """The state; ``None`` if it is not one of this model's, which may have other weights now."""
        arrays = await to_thread.run_sync(unpack_arrays, checkpoint.data)
        restore = partial(import_state, model, arrays, checkpoint.frames, "checkpoint")
        try:
            return await self._on_device(model, restore)
        except InvalidInput as error:
            logger.warning("a rollout begins again: %s", error)
            return None

    async def _on_device(self, model: WorldModel, function: Callable[[], ResultT]) -> ResultT:
        """Run a function where torch runs for a model's device."""
        return await asyncio.wrap_future(self._dispatcher.call(str(model.device), function))
