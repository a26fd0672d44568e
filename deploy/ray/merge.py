"""What concerns sessions of several replicas: their list, and a step of each of several."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from urllib.parse import parse_qsl

import httpx
from pydantic import ValidationError
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from app.errors import ApiError
from app.schemas import BatchStepBody, PageQuery
from deploy.ray.forward import Forwarder
from deploy.ray.members import Member, Members

PAGE = 100
"""Sessions that a replica lists at a time."""

Where = Callable[[str, str], Awaitable[Member | None]]


class Merger:
    """Asks several replicas and answers with what they say together.

    Args:
        members: the replicas.
        forwarder: connections to them.
    """

    def __init__(self, members: Members, forwarder: Forwarder) -> None:
        self._members, self._forwarder = members, forwarder

    async def list_sessions(self, scope: Scope, receive: Receive, send: Send) -> bool:
        """Answer with the sessions of all replicas; False leaves a bad query to the route."""
        try:
            query = PageQuery.model_validate(dict(parse_qsl(scope.get("query_string", b"").decode())))
        except (ValidationError, UnicodeDecodeError):
            return False
        urls = [self._members.url, *(member.url for member in self._members.others)]
        lists = await asyncio.gather(*(self._sessions_at(url, scope) for url in urls))
        sessions = sorted((one for some in lists for one in some), key=_newest_first)
        if query.after is not None:
            ids = [session["id"] for session in sessions]
            sessions = sessions[ids.index(query.after) + 1 :] if query.after in ids else []
        page = sessions[: query.limit]
        answer = {
            "object": "list",
            "data": page,
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
            "has_more": len(sessions) > len(page),
        }
        await JSONResponse(answer)(scope, receive, send)
        return True

    async def _sessions_at(self, url: str, scope: Scope) -> list[dict[str, Any]]:
        """All sessions of a replica; none of one that has ended."""
        sessions: list[dict[str, Any]] = []
        more, after = True, ""
        while more:
            path = f"/v1/sessions?limit={PAGE}{after}"
            try:
                answer = await self._forwarder.ask(url, scope, "GET", path)
            except httpx.TransportError:
                break
            if answer.status_code != 200:
                break
            page = answer.json()
            sessions += page["data"]
            more, after = page["has_more"], f"&after={page['last_id']}"
        return sessions

    async def take_steps(self, scope: Scope, body: bytes, where: Where, receive: Receive, send: Send) -> bool:
        """Have each session stepped by its holder; False leaves it to the route: all are here, or none can.

        Args:
            where: finds the holder of an owner's session; may raise an ApiError.
        """
        try:
            frames = BatchStepBody.model_validate_json(body).frames
            steps: list[dict[str, Any]] = json.loads(body)["steps"]
        except (ValidationError, ValueError, RecursionError):
            return False
        answers: list[dict[str, Any]] = [{} for _ in steps]
        groups: dict[str, list[int]] = {}
        for index, step in enumerate(steps):
            try:
                member = await where(step["session_id"], scope["state"]["key"].name)
            except ApiError as error:
                answers[index] = _failed(step, error.code, error.message, f"steps.{index}.session_id")
                continue
            groups.setdefault(self._members.url if member is None else member.url, []).append(index)
        if [*groups] == [self._members.url] and not any(answers):
            return False
        parts = [
            self._step_at(url, scope, [steps[index] for index in indices], frames)
            for url, indices in groups.items()
        ]
        for indices, answered in zip(groups.values(), await asyncio.gather(*parts), strict=True):
            for place, (index, answer) in enumerate(zip(indices, answered, strict=True)):
                answers[index] = _renumbered(answer, place, index)
        await JSONResponse({"object": "list", "data": answers})(scope, receive, send)
        return True

    async def _step_at(
        self, url: str, scope: Scope, steps: Sequence[dict[str, Any]], frames: str
    ) -> Sequence[dict[str, Any]]:
        """The answers of a replica, in order."""
        body = json.dumps({"steps": steps, "frames": frames}).encode()
        try:
            answer = await self._forwarder.ask(url, scope, "POST", "/v1/sessions/step", body)
        except httpx.TransportError:
            message = "the replica that held the session does not answer; try again"
            return [_failed(step, "replica_lost", message, None) for step in steps]
        said = answer.json()
        if answer.status_code != 200:
            error = said["error"]
            return [_failed(step, error["code"], error["message"], error["param"]) for step in steps]
        answers: list[dict[str, Any]] = said["data"]
        return answers


def _newest_first(session: dict[str, Any]) -> tuple[float, str]:
    return -session["created_at"], session["id"]


def _failed(step: dict[str, Any], code: str, message: str, param: str | None) -> dict[str, Any]:
    error = {"code": code, "message": message, "param": param}
    return {"session_id": step["session_id"], "error": error}


def _renumbered(answer: dict[str, Any], place: int, index: int) -> dict[str, Any]:
    """An answer whose error names a field by its place in the client's request."""
    error = answer.get("error")
    if not error or not error["param"]:
        return answer
    begin = f"steps.{place}."
    if not error["param"].startswith(begin):
        return answer
    return {**answer, "error": {**error, "param": f"steps.{index}." + error["param"].removeprefix(begin)}}
