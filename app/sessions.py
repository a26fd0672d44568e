"""Sessions: a world that goes on step by step, from state to state. Knows nothing of HTTP.

The routes use it, and so can a WebSocket: :meth:`SessionService.step` answers with the step's frames as
arrays, and everything about pictures is in ``session_views.py``.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from typing import Any

from pydantic import JsonValue

from app.audit import PresetGuard
from app.auth import Caller
from app.branches import Branch, BranchRunner, Keep
from app.dispatcher import InProcessDispatcher
from app.errors import ApiError, NotFound, Unavailable
from app.metrics import Metrics
from app.models import ModelHost
from app.schemas import RestoreBody, SessionBody, SnapshotBody
from app.session_keeper import SessionKeeper, SnapshotStore
from app.session_opener import SessionOpener
from app.session_reader import SessionReader, check_rewind, committed_step
from app.session_store import CommittedStep, Outcome, Session, SessionStore
from app.settings import Settings
from app.snapshots import naming_the_snapshot
from worldcache.core import ModelInfo
from worldcache.errors import InvalidInput, RolloutCancelled
from worldcache.policies.choose import choose_policy

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class _Step:
    """A step on its way.

    Attributes:
        branch: once it was submitted.
    """

    task: asyncio.Task[CommittedStep]
    branch: Branch | None = None


class SessionService:
    """Everything that can be done with sessions.

    Args:
        settings: hold the limits.
        models: are leased while something is computed, and not in between.
        dispatcher: runs the steps.
        store: keeps the sessions.
        metrics: count.
        guard: knows which presets are replaced.
        snapshots: keep sessions beyond the end of this server; ``None`` for no longer than that.
    """

    def __init__(
        self,
        settings: Settings,
        models: ModelHost,
        dispatcher: InProcessDispatcher,
        store: SessionStore,
        metrics: Metrics,
        guard: PresetGuard,
        snapshots: SnapshotStore | None = None,
    ) -> None:
        self._settings, self._models, self._dispatcher = settings, models, dispatcher
        self.store, self._metrics, self._guard = store, metrics, guard
        self._reader = SessionReader(settings)
        self._opener = SessionOpener(models, dispatcher, self._reader)
        self._branches = BranchRunner(dispatcher, guard, metrics)
        self._steps: dict[str, _Step] = {}
        self._draining = False
        self._keeper: SessionKeeper | None = None
        if snapshots is not None:
            ttl = settings.session_ttl_seconds
            self._keeper = SessionKeeper(store, snapshots, self._opener.snapshot, self._opener.restore, ttl)

    async def find(self, session_id: str, owner: str) -> Session:
        """An owner's open session; one whose server has ended comes back where it was last written down.

        Raises:
            NotFound: there never was one.
            ApiError: 410, it was closed or has expired; 409, it is at another server.
            Unavailable: it is not here, and a server that shuts down brings none back.
        """
        try:
            return await self.store.find(session_id, owner)
        except NotFound:
            if self._keeper is None:
                raise
        self._check_open()
        return await self._keeper.bring_back(session_id, owner)

    async def create(self, body: SessionBody | RestoreBody, caller: Caller) -> Session:
        """Open a session, at a start or where a snapshot was taken.

        Raises:
            ApiError, InvalidInput: it cannot be opened.
        """
        with self._counting_refusals():
            self._check_open()
            await self.store.check_room(caller.client)
            if isinstance(body, RestoreBody):
                with naming_the_snapshot():
                    session = await self._opener.restore(body.snapshot, caller)
            else:
                session = await self._opener.begin(body, caller)
            self._check_open()
            await self.store.add(session)
        return session

    async def step(
        self,
        session: Session,
        actions: Sequence[JsonValue],
        step_id: int | None,
        caller: Caller,
        *,
        acted: bool = True,
        begun: Callable[[], None] = lambda: None,
    ) -> CommittedStep:
        """Take the next step, or answer the last one again.

        A step goes on to its end, and is committed, if its caller is cancelled meanwhile.

        Args:
            session: whose step it is.
            actions: one for each frame of the step, or one for all.
            step_id: of the step, as the caller counts; ``None`` for the next one.
            caller: who asks, and since when.
            acted: somebody waits to see what these actions do, so that the time it takes counts.
            begun: called once it has been handed to the engine.

        Raises:
            ApiError, InvalidInput: it cannot be taken, or has failed. The session is as it was.
        """
        with self._counting_refusals():
            self._check_open()
            self._check_still(session)
            if (known := committed_step(session, step_id)) is not None:
                await self.store.save(session)
                return known
            parsed = self._reader.read_step(session, actions, self.info(session))
            sent = list(actions) * (len(parsed) // len(actions))
            work = self._take_step(session, sent, parsed, caller, acted, begun)
            step = _Step(asyncio.create_task(work))
            self._steps[session.id] = step
            step.task.add_done_callback(partial(self._step_done, session.id))
            return await asyncio.shield(step.task)

    def stepping(self, session: Session) -> bool:
        """Whether a step of the session is being taken."""
        return session.id in self._steps

    async def settle(self, session: Session) -> None:
        """Return when no step of the session is being taken, whatever became of it."""
        while (step := self._steps.get(session.id)) is not None:
            await asyncio.wait([step.task])

    async def plan(
        self, session: Session, candidates: Sequence[Sequence[JsonValue]], keep: Keep, caller: Caller
    ) -> list[Outcome | ApiError | InvalidInput]:
        """What would come of each sequence of actions; the session stays as it is.

        Each is padded to whole steps. They are dropped if the caller is cancelled.

        Args:
            session: where they begin.
            candidates: sequences of actions, of any lengths.
            keep: which of their frames.
            caller: who asks.

        Returns:
            In order, what each came to or why it failed.

        Raises:
            ApiError, InvalidInput: none was run.
        """
        state = session.state
        with self._counting_refusals(), session.in_use():
            self._check_open()
            parsed = self._reader.read_candidates(session, candidates, self.info(session))
            lease = await self._models.lease(session.model, allowed=caller.models)
            branches: list[Branch] = []
            try:
                for actions in parsed:
                    branch = self._branches.submit(lease.model, session, state, actions, caller.client)
                    branches.append(branch)
                outcomes = await asyncio.gather(*(self._outcome(branch, keep) for branch in branches))
            finally:
                for branch in branches:
                    branch.job.cancel()  # nothing happens to what has ended
                lease.release()
                await self.store.save(session)
        return outcomes

    async def fork(self, session: Session, caller: Caller) -> Session:
        """A new session with the same past; states are shared, as nobody changes them."""
        with self._counting_refusals():
            self._check_open()
            child = Session(
                owner=session.owner,
                client=caller.client,
                model=session.model,
                terms=session.terms,
                cache=session.cache,
                frames_per_step=session.frames_per_step,
                output=session.output,
                metadata=session.metadata,
                start=session.start,
                history=session.history.copy(),
                actions=session.actions.copy(),
                last=session.last,
                parent=session.id,
            )
            await self.store.add(child)
        await self.store.save(session)
        return child

    async def rewind(self, session: Session, to_frame: int) -> None:
        """Go back to the end of a step, or to frame 0.

        Raises:
            ApiError: there is no step's end, its state is not kept, or a step is being taken.
        """
        self._check_still(session)
        check_rewind(session, to_frame)
        if to_frame != session.frames:
            kept = list(takewhile(lambda state: state.frames <= to_frame, session.history))
            session.history = deque(kept, maxlen=session.history.maxlen)
            del session.actions[to_frame:]
            session.last = None
        await self.store.save(session)

    async def change_cache(self, session: Session, cache: str | dict[str, Any] | None) -> None:
        """Use another cache from the next step on.

        Raises:
            InvalidInput: the cache cannot be used; ``param`` names the field.
        """
        policy = choose_policy(cache, self.info(session))
        session.cache, session.terms = cache, replace(session.terms, policy=policy)
        await self.store.save(session)

    async def snapshot(self, session: Session) -> SnapshotBody:
        """The session as it is, as a document.

        Raises:
            InvalidInput: the model keeps its contexts to itself.
        """
        try:
            return await self._opener.snapshot(session)
        finally:
            await self.store.save(session)

    async def close(self, session: Session) -> None:
        """Close a session; a step that is being taken is dropped."""
        await self.store.close(session)
        if self._keeper is not None:
            await self._keeper.remove(session)
        step = self._steps.get(session.id)
        if step is not None and step.branch is not None:
            step.branch.job.cancel()

    def info(self, session: Session) -> ModelInfo:
        """What the session's model says about itself, loaded or not."""
        return self._models.info(session.model)

    async def keep_written(self) -> None:
        """Write changed sessions down from time to time, until it is cancelled."""
        while self._keeper is not None:
            await asyncio.sleep(self._settings.session_snapshot_seconds)
            try:
                await self._keeper.write_down()
            except Exception:
                logger.exception("sessions could not be written down")

    async def hand_over(self) -> None:
        """Write every session down for the last time, and let other servers have them."""
        if self._keeper is not None:
            await self._keeper.write_down()
            await self._keeper.leave_all()

    async def drain(self, seconds: float) -> None:
        """Take no more steps; let those on their way finish for a while, then drop them."""
        self._draining = True
        steps = list(self._steps.values())
        if not steps:
            return
        await asyncio.wait([step.task for step in steps], timeout=seconds)
        for step in steps:
            if step.branch is not None:
                step.branch.job.cancel()
            else:
                step.task.cancel()
        await asyncio.wait([step.task for step in steps])

    async def _take_step(
        self,
        session: Session,
        sent: list[JsonValue],
        actions: tuple[Any, ...],
        caller: Caller,
        acted: bool,
        begun: Callable[[], None],
    ) -> CommittedStep:
        with session.in_use():
            lease = await self._models.lease(session.model, allowed=caller.models)
            try:
                self._check_open()
                _check_not_closed(session)
                branch = self._branches.submit(lease.model, session, session.state, actions, caller.client)
                self._steps[session.id].branch = branch
                begun()
                outcome = await self._branches.finish(branch)
            except RolloutCancelled:
                _check_not_closed(session)
                message = "the step was dropped and is not committed: the server is shutting down"
                raise Unavailable("draining", message, retry_after=5) from None
            finally:
                lease.release()
            _check_not_closed(session)
            seconds = outcome.first_frame_at - caller.arrived
            if acted:
                self._metrics.action_to_frame.labels(session.model).observe(seconds)
            committed = _commit(session, sent, outcome, seconds)
            await self.store.save(session)
            return committed

    def _step_done(self, session_id: str, task: asyncio.Task[CommittedStep]) -> None:
        """The session is free for the next step; an error that nobody waits for any more is told here."""
        del self._steps[session_id]
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, (ApiError, InvalidInput)):
            logger.error("a step of session %s failed", session_id, exc_info=error)

    async def _outcome(self, branch: Branch, keep: Keep) -> Outcome | ApiError | InvalidInput:
        """What a branch of a plan came to; its failure is nobody else's."""
        try:
            return await self._branches.finish(branch, keep)
        except RolloutCancelled:
            return Unavailable("draining", "the server is shutting down", retry_after=5)
        except (ApiError, InvalidInput) as error:
            return error

    def _check_open(self) -> None:
        if self._draining:
            raise Unavailable("draining", "the server is shutting down", retry_after=5)

    def _check_still(self, session: Session) -> None:
        """Refuse what would come between a step and its end."""
        if self.stepping(session):
            raise ApiError(
                409,
                "step_in_progress",
                "a step of this session is being taken; wait for its answer",
                headers={"Retry-After": str(self._settings.retry_after_seconds)},
            )

    @contextmanager
    def _counting_refusals(self) -> Iterator[None]:
        try:
            yield
        except (ApiError, InvalidInput) as error:
            self._metrics.rejected.labels(error.code).inc()
            raise


def _check_not_closed(session: Session) -> None:
    if session.closed:
        raise ApiError(410, "session_gone", f"session {session.id!r} was closed; begin another one")


def _commit(session: Session, sent: list[JsonValue], outcome: Outcome, seconds: float) -> CommittedStep:
    """Make a step that has succeeded part of the past."""
    assert outcome.state is not None
    committed = CommittedStep(session.next_step_id, outcome, seconds)
    session.history.append(outcome.state)
    session.actions += sent
    session.last = committed
    session.steps_total += outcome.stats.steps_total
    session.steps_full += outcome.stats.steps_full
    return committed
