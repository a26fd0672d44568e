"""Server-sent events from bytes."""

from __future__ import annotations

import pytest

from worldcache.client.sse import EventParser, ServerEvent

STREAM = (
    '\ufeffid: 7\nevent: frame\ndata: {"a":\ndata: "\u00e9"}\n\n: keep-alive\n\n'
    "data:x\n\nevent: empty\n\nid: 8\n"
)
EVENTS = [ServerEvent("frame", '{"a":\n"\u00e9"}', "7"), ServerEvent("message", "x", None)]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_events_are_the_same_however_they_are_cut(end: str, size: int) -> None:
    data = STREAM.replace("\n", end).encode()
    parser = EventParser()
    found = [event for i in range(0, len(data), size) for event in parser.feed(data[i : i + size])]
    assert found == EVENTS


def test_an_event_is_there_as_soon_as_it_is_complete() -> None:
    parser = EventParser()
    assert list(parser.feed(b"data: 1\n")) == []
    assert list(parser.feed(b"\n")) == [ServerEvent("message", "1", None)]
    assert list(parser.feed(b"data: 2\r\r")) == [ServerEvent("message", "2", None)]
    assert list(parser.feed(b"\ndata: 3\n\n")) == [ServerEvent("message", "3", None)]


def test_an_id_belongs_to_one_event() -> None:
    first, second = EventParser().feed(b"id: 1\ndata: a\n\ndata: b\n\n")
    assert (first.id, second.id) == ("1", None)
