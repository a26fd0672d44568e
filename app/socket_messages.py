"""What a client may say over a session's WebSocket, checked message by message."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError, from_json

from app.errors import validation_error
from app.schemas import Body
from worldcache.errors import InvalidInput

MAX_SEQ = 2**53 - 1
"""The largest number that every client's JSON keeps exact."""


class SocketQuery(BaseModel):
    """Query of ``/v1/sessions/{id}/ws``."""

    model_config = ConfigDict(extra="forbid")

    mode: Literal["lockstep", "free"] = "lockstep"
    modalities: str | None = Field(None, min_length=1, max_length=1024)
    format: Literal["png", "jpeg"] | None = None
    details: bool = False


class ActionMessage(Body):
    """Something to do: in one frame, or in the frames of one step."""

    type: Literal["action"]
    action: JsonValue = None
    actions: list[JsonValue] | None = Field(None, min_length=1)
    seq: int = Field(ge=0, le=MAX_SEQ, strict=True)

    @model_validator(mode="after")
    def _one_kind(self) -> ActionMessage:
        if (self.action is None) == (self.actions is None):
            raise PydanticCustomError("one_kind", "give either action or actions")
        return self


class CacheMessage(Body):
    """Another cache, from the next step on."""

    type: Literal["cache"]
    cache: str | dict[str, JsonValue] | None


class PauseMessage(Body):
    """Begin no step until further notice."""

    type: Literal["pause"]


class ResumeMessage(Body):
    """Go on."""

    type: Literal["resume"]


class ResetMessage(Body):
    """Back to frame 0."""

    type: Literal["reset"]


class RewindMessage(Body):
    """Back to the end of a step."""

    type: Literal["rewind"]
    to_frame: int = Field(ge=0, strict=True)


class PingMessage(Body):
    """Is anybody there?"""

    type: Literal["ping"]
    id: Annotated[int, Field(strict=True)] | Annotated[str, StringConstraints(max_length=256)] | None = None


ClientMessage: TypeAlias = (
    ActionMessage | CacheMessage | PauseMessage | ResumeMessage | ResetMessage | RewindMessage | PingMessage
)

_BY_TYPE: Mapping[str, type[ClientMessage]] = MappingProxyType(
    {
        "action": ActionMessage,
        "cache": CacheMessage,
        "pause": PauseMessage,
        "resume": ResumeMessage,
        "reset": ResetMessage,
        "rewind": RewindMessage,
        "ping": PingMessage,
    }
)


def parse_object(text: str) -> dict[str, Any] | None:
    """The JSON object that a text is; ``None`` if it is none."""
    try:
        data = from_json(text, allow_inf_nan=False)
    except ValueError:
        return None
    return data if isinstance(data, dict) else None


def seq_of(data: Mapping[str, Any]) -> int | None:
    """The number that a message gives itself, whatever else is wrong with it."""
    seq = data.get("seq")
    return seq if isinstance(seq, int) and not isinstance(seq, bool) else None


def read_message(data: Mapping[str, Any]) -> ClientMessage:
    """A message, checked.

    Raises:
        InvalidInput: ``param`` names the field at fault.
    """
    kind = data.get("type")
    if kind is None:
        raise InvalidInput(f"give a type: {', '.join(_BY_TYPE)}", param="type", code="missing_field")
    if not isinstance(kind, str) or kind not in _BY_TYPE:
        message = f"unknown type; use one of: {', '.join(_BY_TYPE)}"
        raise InvalidInput(message, param="type", code="unknown_type")
    try:
        return _BY_TYPE[kind].model_validate(data)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        raise validation_error({**problem, "loc": ("body", *problem["loc"])}, data) from None
