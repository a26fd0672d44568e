"""Rollouts from a session's state: a step is one of them, a plan is many. None is listed anywhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from app.audit import PresetGuard
from app.dispatcher import Dispatcher, Job
from app.errors import ApiError
from app.metrics import Metrics
from app.session_store import Outcome, Session
from worldcache.core import ChunkFinished, Frames, RolloutEnded, RolloutState
from worldcache.engine.rollout import Priority, RolloutRequest
from worldcache.errors import InvalidInput, RolloutCancelled, WorldCacheError
from worldcache.models.base import WorldModel
from worldcache.policies.choose import choose_policy

logger = logging.getLogger(__name__)

Keep: TypeAlias = Literal["all", "last", "none"]


@dataclass(frozen=True)
class Branch:
    """A rollout on its way.

    Attributes:
        state: where it began.
    """

    job: Job
    model: WorldModel
    policy: str
    state: RolloutState
    expected_seconds: float | None
    replaced_preset: str | None


class BranchRunner:
    """Submits branches and follows them to their end.

    Args:
        dispatcher: runs them.
        guard: knows which presets are replaced.
        metrics: count their steps and frames.
    """

    def __init__(self, dispatcher: Dispatcher, guard: PresetGuard, metrics: Metrics) -> None:
        self._dispatcher, self._guard, self._metrics = dispatcher, guard, metrics

    def submit(
        self, model: WorldModel, session: Session, state: RolloutState, actions: Sequence[Any], client: str
    ) -> Branch:
        """Begin a branch, before everybody else's rollouts that are not interactive.

        Args:
            model: the session's, leased.
            session: whose terms it has.
            state: where it begins.
            actions: one for each frame, as the action space parses them.
            client: who asks.

        Raises:
            ApiError: there is no room in the line.
        """
        choice = self._guard.choose(session.cache, model.info)
        request = RolloutRequest(
            None,
            tuple(actions),
            choose_policy(choice.cache, model.info),
            session.terms.seed,
            session.terms.num_inference_steps,
            session.terms.guidance_scale,
            client=client,
            priority=Priority.INTERACTIVE,
            state=state,
        )
        full_steps = self._dispatcher.full_steps(model, request)
        expected = self._dispatcher.expect(model, request, full_steps)
        job = self._dispatcher.submit(model, request)
        return Branch(job, model, request.policy.name, state, expected, choice.replaced)

    async def finish(self, branch: Branch, keep: Keep = "all") -> Outcome:
        """Follow a branch to its end; it is cancelled if this is.

        Args:
            branch: that was submitted.
            keep: which of its frames.

        Raises:
            RolloutCancelled: it was cancelled.
            InvalidInput: the model refused it.
            ApiError: it failed.
        """
        model = branch.model.info.id
        parts: list[Frames] = []
        count, first_frame_at = 0, 0.0
        state: RolloutState | None = None
        ended: RolloutEnded | None = None
        try:
            async for event in branch.job.events():
                if isinstance(event, ChunkFinished):
                    first_frame_at = first_frame_at or time.monotonic()
                    size = len(next(iter(event.frames.values())))
                    count += size
                    parts = _kept(parts, event.frames, keep)
                    self._metrics.chunk_finished(model, branch.policy, event.stats, size)
                    state = event.state
                elif isinstance(event, RolloutEnded):
                    ended = event
        finally:
            if ended is None:
                branch.job.cancel()
        assert ended is not None
        if ended.status != "succeeded":
            raise _failure(ended)
        self._metrics.skip_ratio.labels(model, branch.policy).observe(ended.stats.skip_ratio)
        frames = _joined(parts)
        kept = len(next(iter(frames.values()), ()))
        return Outcome(
            first_frame=branch.state.frames + count - kept,
            frames=frames,
            frame_count=count,
            stats=ended.stats,
            state=state,
            first_frame_at=first_frame_at,
            expected_seconds=branch.expected_seconds,
            replaced_preset=branch.replaced_preset,
        )


def _kept(parts: list[Frames], frames: Frames, keep: Keep) -> list[Frames]:
    """The frames to keep, after more have come."""
    if keep == "none":
        return []
    if keep == "last":
        return [{name: array[-1:].copy() for name, array in frames.items()}]
    return [*parts, frames]


def _joined(parts: Sequence[Frames]) -> Mapping[str, NDArray[Any]]:
    if len(parts) == 1:
        return parts[0]
    names = parts[0] if parts else ()
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


def _failure(ended: RolloutEnded) -> Exception:
    """What a client may know of it: our own words, never an exception's."""
    error = ended.error
    if isinstance(error, (InvalidInput, RolloutCancelled)):
        return error
    if ended.status == "cancelled":
        return RolloutCancelled("it was cancelled")
    logger.warning("a rollout of a session failed: %s", error)
    if isinstance(error, WorldCacheError):
        return ApiError(500, error.code, str(error))
    return ApiError(500, "rollout_failed", "the step failed; the server's log has the reason")
