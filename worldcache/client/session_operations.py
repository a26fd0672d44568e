"""What can be done with sessions, as operations of an :class:`Exchange`.

A step whose answer is lost may have been taken or not. Its actions given again repeat it under its number,
and it is taken once; before anything else is done, it is undone by a rewind to where the session was known
to be.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeAlias

from worldcache.client.body import SessionFields, encode_json, encode_session
from worldcache.client.errors import (
    ApiError,
    ClientError,
    InvalidInput,
    NotFound,
    StepsFailed,
    UnexpectedAnswer,
)
from worldcache.client.exchange import Exchange, Operation, Pause, Reply, Request, ResultT, read_answer
from worldcache.client.operations import Listing, read_list
from worldcache.client.retries import Retries
from worldcache.client.session_state import STEP_IN_PROGRESS, SessionState, session_path
from worldcache.client.session_types import Plan, Step, read_plan, read_step
from worldcache.client.types import Problem

logger = logging.getLogger(__name__)

Wrap: TypeAlias = Callable[[Any], ResultT]
Keep: TypeAlias = Literal["all", "last", "none"]

JSON = {"Content-Type": "application/json"}
GONE = "session_gone"
LEAVING_SECONDS = 10.0
"""Silence after which somebody who is interrupted waits no longer for a session to be closed."""


def create(exchange: Exchange, fields: SessionFields, wrap: Wrap[ResultT]) -> Operation[ResultT]:
    """A new session."""
    return (yield from _open(exchange, encode_session(fields), wrap))


def restore(exchange: Exchange, snapshot: Mapping[str, Any], wrap: Wrap[ResultT]) -> Operation[ResultT]:
    """A new session that goes on where a snapshot was taken."""
    return (yield from _open(exchange, encode_json({"snapshot": snapshot}), wrap))


def get(exchange: Exchange, session_id: str, wrap: Wrap[ResultT]) -> Operation[ResultT]:
    """A session as it is now."""
    return wrap((yield from _ask(exchange, "GET", session_path(session_id))))


def listing(exchange: Exchange, wrap: Wrap[ResultT], limit: int | None) -> Listing[ResultT]:
    """Open sessions, newest first, at most ``limit`` of them."""
    return Listing(exchange, "/v1/sessions", wrap, limit)


def step(exchange: Exchange, state: SessionState, actions: Sequence[Any]) -> Operation[Step]:
    """The next step, or once more the one that was lost, if these were its actions."""
    sent = encode_json(actions)
    yield from settle(exchange, state, sent)
    begun = state.open_step is not None
    content = encode_json({"actions": actions, "step_id": state.begin_step(sent)})
    path = session_path(state.data.id, "step")
    try:
        answer = yield from _ask(exchange, "POST", path, content, unfinished=_is_in_progress, begun=begun)
    except ApiError as error:
        state.step_refused(error)
        raise
    taken = read_step(answer)
    state.stepped(taken)
    return taken


def step_all(
    exchange: Exchange, steps: Sequence[tuple[SessionState, Sequence[Any]]], frames: Keep
) -> Operation[tuple[Step, ...]]:
    """The next step of each of several sessions.

    Raises:
        StepsFailed: some were not taken.
    """
    states = [state for state, _ in steps]
    if len({state.data.id for state in states}) < len(states):
        raise InvalidInput("a session can take one step at a time; it is given twice")
    sent = [encode_json(actions) for _, actions in steps]
    for state, actions in zip(states, sent, strict=True):
        yield from settle(exchange, state, actions)
    begun = any(state.open_step is not None for state in states)
    numbers = [state.begin_step(actions) for state, actions in zip(states, sent, strict=True)]
    entries = [
        {"session_id": state.data.id, "actions": actions, "step_id": number}
        for (state, actions), number in zip(steps, numbers, strict=True)
    ]
    content = encode_json({"steps": entries, "frames": frames})
    try:
        answer = yield from _ask(
            exchange, "POST", "/v1/sessions/step", content, unfinished=_some_are_in_progress, begun=begun
        )
    except ApiError as error:
        for state in states:
            state.step_refused(error)
        raise
    results = [_step_or_problem(item) for item in read_list(answer)]
    if len(results) != len(states):
        raise UnexpectedAnswer(f"these are {len(results)} steps, not {len(states)}")
    for state, result in zip(states, results, strict=True):
        if isinstance(result, Step):
            state.stepped(result)
    taken = tuple(result for result in results if isinstance(result, Step))
    if len(taken) < len(results):
        raise StepsFailed(results)
    return taken


def plan(
    exchange: Exchange, state: SessionState, candidates: Sequence[Sequence[Any]], frames: Keep
) -> Operation[Plan]:
    """What would come of each of several sequences of actions."""
    yield from settle(exchange, state)
    content = encode_json({"candidates": candidates, "frames": frames})
    path = session_path(state.data.id, "plan")
    return read_plan((yield from _ask(exchange, "POST", path, content, ends_with_connection=True)))


def fork(exchange: Exchange, state: SessionState, wrap: Wrap[ResultT]) -> Operation[ResultT]:
    """A new session with the same past."""
    yield from settle(exchange, state)
    request = Request("POST", session_path(state.data.id, "fork"), repeatable_if_refused=True)
    return wrap((yield from exchange.ask(request)).json())


def rewind(exchange: Exchange, state: SessionState, to_frame: int) -> Operation[None]:
    """Back to the end of a step, or to frame 0."""
    yield from _go_back(exchange, state, "rewind", {"to_frame": to_frame})


def reset(exchange: Exchange, state: SessionState) -> Operation[None]:
    """Back to frame 0."""
    yield from _go_back(exchange, state, "reset", {})


def change_cache(
    exchange: Exchange, state: SessionState, cache: str | Mapping[str, Any] | None
) -> Operation[None]:
    """Another cache from the next step on."""
    yield from settle(exchange, state)
    content = encode_json({"cache": cache})
    state.described((yield from _ask(exchange, "PATCH", session_path(state.data.id), content)))


def snapshot(exchange: Exchange, state: SessionState) -> Operation[dict[str, Any]]:
    """The session as a document."""
    yield from settle(exchange, state)
    answer = yield from _ask(exchange, "GET", session_path(state.data.id, "snapshot"))
    if not isinstance(answer, dict):
        raise UnexpectedAnswer("this is no snapshot")
    return answer


def refresh(exchange: Exchange, state: SessionState) -> Operation[None]:
    """Learn how the session is now."""
    state.described((yield from _ask(exchange, "GET", session_path(state.data.id))))


def settle(exchange: Exchange, state: SessionState, actions: bytes | None = None) -> Operation[None]:
    """Know where the session is, before something is done there.

    Args:
        exchange: of the client.
        state: of the session.
        actions: of the step that is to be taken. If it is the one that was lost, that stays as it is.
    """
    if state.stale:
        yield from _catch_up(exchange, state)
    if state.open_step is not None and state.open_step.actions != actions:
        yield from rewind(exchange, state, state.data.num_frames)


def close(exchange: Exchange, session_id: str) -> Operation[None]:
    """Close a session; one that was closed or has expired already stays so."""
    try:
        yield from _ask(exchange, "DELETE", session_path(session_id))
    except NotFound as error:
        if error.code != GONE:
            raise


def leave(exchange: Exchange, session_id: str) -> Operation[None]:
    """Close a session that nobody wants any more, without patience."""
    hasty = replace(exchange, retries=Retries(count=0), timeout=min(exchange.timeout, LEAVING_SECONDS))
    try:
        yield from close(hasty, session_id)
    except ClientError as error:
        logger.warning("session %s may not have been closed: %s", session_id, error)


def _open(exchange: Exchange, content: bytes, wrap: Wrap[ResultT]) -> Operation[ResultT]:
    request = Request("POST", "/v1/sessions", headers=JSON, content=content, repeatable_if_refused=True)
    return wrap((yield from exchange.ask(request)).json())


def _catch_up(exchange: Exchange, state: SessionState) -> Operation[None]:
    """Learn where a session is once no step is on its way: a rewind to there is refused before that."""
    backoff = exchange.backoff()
    while True:
        yield from refresh(exchange, state)
        content = encode_json({"to_frame": state.data.num_frames})
        try:
            answer = yield from _ask(exchange, "POST", session_path(state.data.id, "rewind"), content)
        except ApiError as error:
            delay = backoff.next_delay(error.retry_after) if error.code == STEP_IN_PROGRESS else None
            if delay is None:
                raise
            yield Pause(delay)
        else:
            state.went_back(answer)
            return


def _go_back(exchange: Exchange, state: SessionState, verb: str, body: Mapping[str, Any]) -> Operation[None]:
    """Go back; a step that may still be on its way is waited for, and undone."""
    path, content = session_path(state.data.id, verb), encode_json(body)
    begun = state.stale or state.open_step is not None
    answer = yield from _ask(exchange, "POST", path, content, unfinished=_is_in_progress, begun=begun)
    state.went_back(answer)


def _ask(
    exchange: Exchange, method: str, path: str, content: bytes | None = None, **options: Any
) -> Operation[Any]:
    """The answer to a request that may be repeated."""
    headers = {} if content is None else JSON
    request = Request(method, path, headers=headers, content=content, repeatable=True, **options)
    return (yield from exchange.ask(request)).json()


def _is_in_progress(reply: Reply) -> bool:
    """A step is still being taken, so this one was refused."""
    return reply.status == 409 and reply.error().code == STEP_IN_PROGRESS


def _some_are_in_progress(reply: Reply) -> bool:
    """Some of the steps are still being taken, so that these were refused."""
    if not reply.ok:
        return False
    results = [_step_or_problem(item) for item in read_list(reply.json())]
    return any(isinstance(result, Problem) and result.code == STEP_IN_PROGRESS for result in results)


def _step_or_problem(item: Any) -> Step | Problem:
    error = item.get("error") if isinstance(item, dict) else None
    return read_step(item) if error is None else read_answer(Problem, error)
