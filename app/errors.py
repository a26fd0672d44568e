"""Errors as clients see them: one envelope, whatever went wrong.

{"error": {"code": ..., "message": ..., "param": ..., "request_id": ...}}
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError, WebSocketRequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from worldcache.errors import InvalidInput, WorldCacheError

logger = logging.getLogger(__name__)

MAX_MESSAGE = 1000
MAX_PARAM = 200
NO_HEADERS: Mapping[str, str] = MappingProxyType({})

_CODES = MappingProxyType(
    {
        400: "bad_request",
        401: "unauthorized",
        403: "forbidden",
        404: "not_found",
        405: "method_not_allowed",
        413: "body_too_large",
        415: "unsupported_media_type",
    }
)


class ApiError(Exception):
    """A refusal with its HTTP status.

    Args:
        status: of the response.
        code: machine-readable name of the problem.
        message: what is wrong and what to do.
        param: dotted path of the field at fault.
        headers: to send along.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.headers = headers


class NotFound(ApiError):
    """404: there is no such thing, or it is another key's."""

    def __init__(self, message: str, *, code: str = "not_found", param: str | None = None) -> None:
        super().__init__(404, code, message, param=param)


class Unavailable(ApiError):
    """503: not now; ``Retry-After`` says when to come back."""

    def __init__(self, code: str, message: str, *, retry_after: int, param: str | None = None) -> None:
        super().__init__(503, code, message, param=param, headers={"Retry-After": str(retry_after)})


def error_body(code: str, message: str, param: str | None, request_id: str) -> dict[str, Any]:
    """The envelope; texts that a client could make endless are cut."""
    if len(message) > MAX_MESSAGE:
        message = message[: MAX_MESSAGE - 3] + "..."
    error = {"code": code, "message": message, "param": param and param[:MAX_PARAM], "request_id": request_id}
    return {"error": error}


def error_response(
    request_id: str,
    status: int,
    code: str,
    message: str,
    param: str | None = None,
    headers: Mapping[str, str] = NO_HEADERS,
) -> Response:
    """The envelope as a response. ASCII only: a client's text may hold what UTF-8 cannot encode."""
    return Response(
        json.dumps(error_body(code, message, param, request_id)),
        status_code=status,
        headers=dict(headers),
        media_type="application/json",
    )


def request_id_of(request: Request) -> str:
    return str(getattr(request.state, "request_id", ""))


def install_error_handlers(app: FastAPI) -> None:
    """Make every error of the app's routes an envelope."""
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(WorldCacheError, _on_library_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(WebSocketRequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)


async def _on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(
        request_id_of(request), error.status, error.code, error.message, error.param, error.headers
    )


async def _on_library_error(request: Request, error: Exception) -> Response:
    if isinstance(error, InvalidInput):
        return error_response(request_id_of(request), 422, error.code, str(error), error.param)
    logger.error("request %s failed", request_id_of(request), exc_info=error)
    return error_response(request_id_of(request), 500, "internal_error", "the server failed; try again later")


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = _CODES.get(error.status_code, "http_error")
    message = str(error.detail)
    if error.status_code == 404:
        message = f"there is nothing at {request.url.path}; /docs lists the routes"
    elif error.status_code == 405:
        message = f"{request.method} is not allowed at {request.url.path}; /docs lists the methods"
    return error_response(
        request_id_of(request), error.status_code, code, message, headers=error.headers or NO_HEADERS
    )


async def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, (RequestValidationError, WebSocketRequestValidationError))
    request_id = request_id_of(request)
    problem = error.errors()[0]
    if problem["type"] == "json_invalid":
        reason = problem.get("ctx", {}).get("error", "")
        return error_response(request_id, 400, "invalid_json", f"the body is not valid JSON: {reason}")
    body = getattr(error, "body", None)
    if isinstance(body, bytes):
        return error_response(
            request_id, 415, "unsupported_media_type", "send JSON with Content-Type: application/json"
        )
    found = validation_error(problem, body)
    return error_response(request_id, 422, found.code, str(found), found.param)


def validation_error(problem: Mapping[str, Any], body: object) -> InvalidInput:
    """A validation problem of pydantic's in our own words.

    Args:
        problem: its location begins with ``body`` or another source.
        body: what was checked.
    """
    param = field_path(problem, body)
    if problem["type"] == "not_supported":
        return InvalidInput(str(problem["msg"]), param=problem["ctx"]["field"], code="not_supported")
    if problem["type"] == "extra_forbidden":
        name = (param or "").rpartition(".")[2]
        return InvalidInput(f"there is no field {name!r}; remove it", param=param, code="unknown_field")
    code = "missing_field" if problem["type"] == "missing" else "invalid_value"
    message = f"{param}: {problem['msg']}" if param else str(problem["msg"])
    return InvalidInput(message, param=param, code=code)


def field_path(problem: Mapping[str, Any], body: object) -> str | None:
    """The dotted path of a validation problem, as the client wrote it.

    Pydantic puts the names of a union's branches into the location; they are not in the body, so
    parts that the body does not have are left out, except the name of a missing field.
    """
    source, *location = problem["loc"]
    if source != "body":
        return ".".join(str(part) for part in location) or None
    return ".".join(_steps(location, body, missing=problem["type"] == "missing")) or None


def _steps(location: Sequence[str | int], body: object, *, missing: bool) -> list[str]:
    path: list[str] = []
    for position, part in enumerate(location):
        if isinstance(body, dict) and part in body:
            body = body[part]
        elif isinstance(body, list) and isinstance(part, int) and part < len(body):
            body = body[part]
        elif not (missing and position == len(location) - 1):
            continue
        path.append(str(part))
    return path
