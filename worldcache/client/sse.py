"""Server-sent events from bytes, however these are cut."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from typing import NamedTuple


class ServerEvent(NamedTuple):
    """One event as it was sent; ``id`` only if it has one of its own."""

    name: str
    data: str
    id: str | None


class EventParser:
    """Of one connection: what is incomplete when that ends is no event."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
        self._line: list[str] = []
        self._after_return = False
        self._name, self._data = "", list[str]()
        self._id: str | None = None

    def feed(self, data: bytes) -> Iterator[ServerEvent]:
        """The events that these bytes complete."""
        text = self._decoder.decode(data)
        if self._after_return and text:
            text = text.removeprefix("\n")  # the second half of a line's end
            self._after_return = False
        if text.endswith("\r"):
            self._after_return = True
        *ends, rest = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        for end in ends:
            event = self._take("".join([*self._line, end]))
            self._line.clear()
            if event is not None:
                yield event
        if rest:
            self._line.append(rest)

    def _take(self, line: str) -> ServerEvent | None:
        """Take in a line; an empty one ends an event. One that begins with a colon is a comment."""
        if not line:
            return self._finish()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._name = value
        elif name == "id":
            self._id = value
        return None

    def _finish(self) -> ServerEvent | None:
        event = ServerEvent(self._name or "message", "\n".join(self._data), self._id) if self._data else None
        self._name, self._data, self._id = "", [], None
        return event
