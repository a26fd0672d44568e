"""``/v1/sessions``: worlds that go on step by step."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import Discriminator, Tag

from app.answers import Deleted
from app.auth import Caller
from app.branches import Keep
from app.dependencies import AppServices, FromCaller, Owner, OwnSession, Services
from app.errors import ApiError
from app.openapi import ALWAYS, BODY, answering, errors
from app.schemas import (
    BatchStepBody,
    NothingBody,
    PageQuery,
    PlanBody,
    RestoreBody,
    RewindBody,
    SessionBody,
    SessionChangeBody,
    SessionStepBody,
    SnapshotBody,
    StepBody,
)
from app.session_answers import PlanAnswer, SessionAnswer, SessionList, StepAnswer, StepList
from app.session_store import Outcome, Session
from app.session_views import plan_json, session_json, step_json
from app.waiting import until_gone
from worldcache.errors import InvalidInput

router = APIRouter(prefix="/v1/sessions", tags=["sessions"])

ONE = (404, 410, 422)
"""Errors of routes that name a session."""

NEW, RESTORED = "a new session", "a restored session"


def _kind(body: object) -> str:
    """Which of the two bodies it is; no field has a name with spaces, so that errors do not show these."""
    restored = "snapshot" in body if isinstance(body, dict) else isinstance(body, RestoreBody)
    return RESTORED if restored else NEW


NewSession = Annotated[
    Annotated[SessionBody, Tag(NEW)] | Annotated[RestoreBody, Tag(RESTORED)], Discriminator(_kind)
]


@router.post("", **answering(SessionAnswer, *BODY, 500, status=201))
async def create_session(body: NewSession, services: AppServices, caller: FromCaller) -> Response:
    """Open a session at an observation, or with `snapshot` where another one was written down.

    It generates nothing yet. It is closed when nobody has used it for a while: see `expires_at`.
    """
    return _created(services, await services.sessions.create(body, caller))


@router.get("", **answering(SessionList, 422))
async def list_sessions(
    query: Annotated[PageQuery, Query()], services: AppServices, owner: Owner
) -> dict[str, Any]:
    """Open sessions, newest first."""
    found = await services.sessions.store.list(owner, limit=query.limit + 1, after=query.after)
    page = found[: query.limit]
    return {
        "object": "list",
        "data": [_describe(services, session) for session in page],
        "first_id": page[0].id if page else None,
        "last_id": page[-1].id if page else None,
        "has_more": len(found) > len(page),
    }


@router.get("/{session_id}", **answering(SessionAnswer, *ONE))
async def get_session(session: OwnSession, services: AppServices) -> dict[str, Any]:
    """One open session. Looking does not keep it open."""
    return _describe(services, session)


@router.patch("/{session_id}", **answering(SessionAnswer, *BODY, *ONE))
async def change_session(
    body: SessionChangeBody, session: OwnSession, services: AppServices
) -> dict[str, Any]:
    """Use another cache from the next step on."""
    await services.sessions.change_cache(session, body.cache)
    return _describe(services, session)


@router.delete("/{session_id}", **answering(Deleted, *ONE))
async def delete_session(session: OwnSession, services: AppServices) -> dict[str, Any]:
    """Close a session; it is gone (410) from then on. A step that is being taken is dropped."""
    await services.sessions.close(session)
    return {"id": session.id, "object": "session", "deleted": True}


@router.post("/{session_id}/step", **answering(StepAnswer, *BODY, *ONE, 409, 500))
async def step_session(
    body: StepBody, session: OwnSession, services: AppServices, caller: FromCaller
) -> Response:
    """Generate the next `frames_per_step` frames.

    A step that was begun is finished and committed although its client goes away: repeat its `step_id`, and
    the same frames are answered. A step that fails leaves the session as it was.
    """
    step = await services.sessions.step(session, body.actions, body.step_id, caller)
    return JSONResponse(await step_json(session, step, services.sessions.info(session)))


@router.post("/step", **answering(StepList, *BODY))
async def step_sessions(body: BatchStepBody, services: AppServices, caller: FromCaller) -> Response:
    """Generate the next step of each of several sessions, in shared batches.

    `data` has them in order, each as a step of its own would be answered. One that fails has an `error`
    instead, and the others are answered.
    """
    ids = [entry.session_id for entry in body.steps]
    answers = await asyncio.gather(
        *(
            _step(
                services,
                caller,
                f"steps.{index}",
                entry,
                body.frames,
                repeated=entry.session_id in ids[:index],
            )
            for index, entry in enumerate(body.steps)
        )
    )
    return JSONResponse({"object": "list", "data": answers})


@router.post("/{session_id}/plan", **answering(PlanAnswer, *BODY, *ONE, 409))
async def plan_session(
    body: PlanBody, session: OwnSession, request: Request, services: AppServices, caller: FromCaller
) -> Response:
    """Generate what would come of each of several sequences of actions, all of them at once.

    The session stays as it is. A branch that fails has an `error` in place of its frames. All are dropped
    when the client goes away.
    """
    outcomes: list[Outcome | ApiError | InvalidInput] = []

    async def work() -> None:
        outcomes.extend(await services.sessions.plan(session, body.candidates, body.frames, caller))

    await until_gone(request.receive, work())
    if not outcomes:
        raise ApiError(409, "client_closed_request", "the client closed the connection")
    return JSONResponse(await plan_json(session, outcomes, services.sessions.info(session)))


@router.post("/{session_id}/fork", **answering(SessionAnswer, *BODY, *ONE, status=201))
async def fork_session(
    session: OwnSession, services: AppServices, caller: FromCaller, body: NothingBody | None = None
) -> Response:
    """A new session with the same past, seed and cache: the same actions give the same frames."""
    return _created(services, await services.sessions.fork(session, caller))


@router.post("/{session_id}/rewind", **answering(SessionAnswer, *BODY, *ONE, 409))
async def rewind_session(body: RewindBody, session: OwnSession, services: AppServices) -> dict[str, Any]:
    """Go back to frame 0, or to the end of a step not before `rewind_from_frame`."""
    await services.sessions.rewind(session, body.to_frame)
    return _describe(services, session)


@router.post("/{session_id}/reset", **answering(SessionAnswer, *BODY, *ONE, 409))
async def reset_session(
    session: OwnSession, services: AppServices, body: NothingBody | None = None
) -> dict[str, Any]:
    """Go back to frame 0."""
    await services.sessions.rewind(session, 0)
    return _describe(services, session)


@router.get("/{session_id}/snapshot", responses=errors(*ALWAYS, *ONE))
async def get_snapshot(session: OwnSession, services: AppServices) -> SnapshotBody:
    """The session as a document, to go on from as `{"snapshot": ...}`, here or on another server."""
    return await services.sessions.snapshot(session)


async def _step(
    services: Services, caller: Caller, place: str, entry: SessionStepBody, keep: Keep, *, repeated: bool
) -> dict[str, Any]:
    """One step of several, or why there is none."""
    sessions = services.sessions
    try:
        session = await sessions.find(entry.session_id, caller.owner)
        if repeated:
            message = f"session {session.id!r} is named twice; it takes one step at a time"
            raise ApiError(409, "step_in_progress", message)
    except ApiError as error:
        return _failed(entry, error, f"{place}.session_id")
    try:
        step = await sessions.step(session, entry.actions, entry.step_id, caller)
    except (ApiError, InvalidInput) as error:
        return _failed(entry, error, error.param and f"{place}.{error.param}")
    return await step_json(session, step, sessions.info(session), keep)


def _failed(entry: SessionStepBody, error: ApiError | InvalidInput, param: str | None) -> dict[str, Any]:
    return {
        "session_id": entry.session_id,
        "error": {"code": error.code, "message": str(error), "param": param},
    }


def _describe(services: Services, session: Session) -> dict[str, Any]:
    return session_json(session, services.sessions.info(session))


def _created(services: Services, session: Session) -> Response:
    return JSONResponse(_describe(services, session), 201, headers={"Location": f"/v1/sessions/{session.id}"})
