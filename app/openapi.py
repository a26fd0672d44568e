"""What routes say about their answers in the OpenAPI description: statuses, kinds of content, errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from app.answers import ErrorAnswer

ALWAYS = (400, 401, 403, 408, 413, 429, 503)
"""Errors of every route of the API: no HTTP, keys, origins, sizes, rates, a server that is full or stops."""

MEANINGS: Mapping[int, str] = MappingProxyType(
    {
        400: "The request cannot be read.",
        401: "A valid API key is needed.",
        403: "The key, or the page that asks, may not do this.",
        404: "There is no such thing, or it is another key's.",
        408: "The body came too slowly.",
        409: "Not in this state.",
        410: "The session was closed or has expired.",
        413: "The body, or an image, is too large.",
        415: "Another Content-Type is needed.",
        422: "A field is wrong; `param` names it.",
        429: "More than this client may; see Retry-After.",
        500: "The rollout failed.",
        503: "Not now; see Retry-After.",
        504: "The deadline cannot be met, or was missed.",
    }
)

BODY = (415, 422)
"""Errors of routes that read a body."""

BINARY: Mapping[str, Any] = MappingProxyType({"schema": {"type": "string", "format": "binary"}})


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Responses with the envelope of errors."""
    return {status: {"model": ErrorAnswer, "description": MEANINGS[status]} for status in sorted({*statuses})}


def answering(
    model: Any,
    *failures: int,
    status: int = 200,
    also: Mapping[int, str] = MappingProxyType({}),
    media: Sequence[str] = (),
) -> dict[str, Any]:
    """Arguments of a route of the API that describe its answers; nothing is checked or left out by them.

    Args:
        model: shape of the JSON answer; ``None`` if there is none.
        failures: statuses of errors besides :data:`ALWAYS`.
        status: of the answer.
        also: further statuses with the same answer, and what they mean.
        media: further kinds of content of the answer.
    """
    answer: dict[str, Any] = {"description": "Done."}
    if model is not None:
        answer["model"] = model
    if media:
        answer["content"] = {kind: {} if kind.startswith("text/") else dict(BINARY) for kind in media}
    responses: dict[int | str, dict[str, Any]] = {status: answer}
    for other, meaning in also.items():
        responses[other] = {**answer, "description": meaning}
    responses |= errors(*ALWAYS, *failures)
    return {"response_model": None, "status_code": status, "responses": responses}
