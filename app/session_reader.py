"""What clients ask of sessions, checked: every limit, before anything is computed."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from pydantic import JsonValue

from app.auth import Caller
from app.errors import ApiError
from app.requests import RequestReader, check_modalities, check_start
from app.schemas import ConditioningBody, ObservationBody, SessionBody, SnapshotBody
from app.session_store import CommittedStep, Session
from app.settings import Settings
from worldcache.core import Conditioning, ModelInfo, Observation, RolloutState
from worldcache.errors import InvalidInput


class SessionReader:
    """Turns what was sent into what is done.

    Args:
        settings: hold the limits.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings, self._requests = settings, RequestReader(settings)

    def read_session(
        self, body: SessionBody | SnapshotBody, frames_per_step: int | None, info: ModelInfo, caller: Caller
    ) -> Session:
        """A session without a past, whose start is to be filled in.

        Raises:
            ApiError, InvalidInput: the message names the field at fault.
        """
        terms = self._requests.read_terms(body, info)
        if body.conditioning.camera is not None:
            message = "conditioning.camera: leave it out; the actions of each step say where the camera is"
            raise InvalidInput(message, param="conditioning.camera")
        per_step = info.chunk_frames if frames_per_step is None else frames_per_step
        if per_step not in info.chunk_lengths and per_step % info.chunk_frames:
            message = f"frames_per_step must be a multiple of {info.chunk_frames}, not {per_step}"
            raise InvalidInput(message, param="frames_per_step")
        self._requests.check_horizon(per_step, "frames_per_step")
        check_modalities(body.output.modalities, info)
        return Session(
            owner=caller.owner,
            client=caller.client,
            model=body.model,
            terms=terms,
            cache=body.cache,
            frames_per_step=per_step,
            output=body.output,
            metadata=body.metadata,
            start=RolloutState(None, 0),
            history=deque(maxlen=self._settings.session_history_steps),
        )

    def read_past(self, body: SnapshotBody, info: ModelInfo) -> list[JsonValue]:
        """A snapshot's actions.

        Raises:
            ApiError, InvalidInput: they are too many, unknown, or not as many as its frames.
        """
        if len(body.actions) > self._settings.session_max_frames:
            message = f"at most {self._settings.session_max_frames} frames of one session"
            raise ApiError(422, "too_many_frames", message, param="actions")
        if body.frames != len(body.actions) or body.frames % body.frames_per_step:
            message = (
                "frames must be as many as there are actions, and a multiple of frames_per_step, "
                f"not {body.frames}"
            )
            raise InvalidInput(message, param="frames")
        info.action_space.parse(body.actions)
        return list(body.actions)

    async def read_conditioning(self, body: ConditioningBody, info: ModelInfo) -> Conditioning:
        """What the session is conditioned on besides its observation and its actions.

        Raises:
            ApiError: the message names the image at fault.
        """
        return await self._requests.read_conditioning(body, info)

    async def read_observation(self, body: ObservationBody, info: ModelInfo) -> Observation:
        """Where a session starts.

        Raises:
            ApiError, InvalidInput: the message names the field at fault.
        """
        check_start(body, info)
        return await self._requests.read_observation(body, info)

    def read_step(self, session: Session, actions: Sequence[JsonValue], info: ModelInfo) -> tuple[Any, ...]:
        """A step's actions, one for each frame.

        Raises:
            ApiError, InvalidInput: they cannot be taken; ``param`` names them.
        """
        wanted = session.frames_per_step
        if len(actions) not in (1, wanted):
            message = f"actions: give {wanted} of them, one a frame, or one for all; not {len(actions)}"
            raise InvalidInput(message, param="actions")
        if session.frames + wanted > self._settings.session_max_frames:
            message = (
                f"a session has at most {self._settings.session_max_frames} frames; rewind or reset it, "
                "or begin another one"
            )
            raise ApiError(409, "session_full", message)
        parsed = info.action_space.parse(actions)
        return parsed * (wanted // len(parsed))

    def read_candidates(
        self, session: Session, candidates: Sequence[Sequence[JsonValue]], info: ModelInfo
    ) -> list[tuple[Any, ...]]:
        """Sequences of actions, each padded to whole steps.

        Raises:
            ApiError, InvalidInput: there are too many, or one cannot be taken; ``param`` names it.
        """
        settings, space = self._settings, info.action_space
        if len(candidates) > settings.plan_max_candidates:
            message = f"candidates: at most {settings.plan_max_candidates}, not {len(candidates)}"
            raise ApiError(422, "too_many_candidates", message, param="candidates")
        lengths = [-(-len(one) // session.frames_per_step) * session.frames_per_step for one in candidates]
        for index, length in enumerate(lengths):
            self._requests.check_horizon(length, f"candidates.{index}")
        if sum(lengths) > settings.plan_max_frames:
            message = f"candidates: at most {settings.plan_max_frames} frames in all, not {sum(lengths)}"
            raise ApiError(422, "too_many_frames", message, param="candidates")
        parsed = [space.parse(one, param=f"candidates.{index}") for index, one in enumerate(candidates)]
        return [one + one[-1:] * (length - len(one)) for one, length in zip(parsed, lengths, strict=True)]


def committed_step(session: Session, step_id: int | None) -> CommittedStep | None:
    """The last step, if it is the one that is asked for; ``None`` if that is the next one.

    Raises:
        ApiError: 409, it is neither, or the last step's frames are not kept.
    """
    expected = session.next_step_id
    if step_id is None or step_id == expected:
        return None
    if step_id == session.committed_step_id:
        if session.last is not None:
            return session.last
        reason = f"step {step_id} is committed, but its frames are not kept after a rewind or a restore"
    else:
        reason = f"step {step_id} is not the next one"
    raise ApiError(409, "step_conflict", f"{reason}; go on with step_id {expected}", param="step_id")


def check_rewind(session: Session, to_frame: int) -> None:
    """Refuse a frame that the session cannot go back to.

    Raises:
        ApiError, InvalidInput: the message says which frames there are.
    """
    if to_frame > session.frames:
        message = f"to_frame: the session has {session.frames} frames, fewer than {to_frame}"
        raise InvalidInput(message, param="to_frame")
    if to_frame % session.frames_per_step:
        message = f"to_frame: {to_frame} is no multiple of the {session.frames_per_step} frames of a step"
        raise InvalidInput(message, param="to_frame")
    if 0 < to_frame < session.rewind_from_frame:
        message = (
            f"the state at frame {to_frame} is not kept any more; rewind to frame 0, or to "
            f"{session.rewind_from_frame} or later"
        )
        raise ApiError(409, "rewind_too_far", message, param="to_frame")
