"""Streams through both clients: as they come, cut off, taken up again, left."""

from __future__ import annotations

import asyncio
import builtins
import gc
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from tests.app.conftest import serving
from tests.app.test_streaming import Gate
from tests.client.conftest import FIELDS, LONG, Hourglass, Kind, statuses
from tests.client.test_rollouts import until
from tests.toy import ToyWorldModel
from worldcache.client import (
    AsyncClient,
    Chunk,
    Client,
    ConnectionFailed,
    Done,
    Frame,
    NotFound,
    PillowMissing,
    RolloutCancelled,
    ServerBusy,
    Status,
    UnexpectedAnswer,
)

NAMES = ["Status"] * 2 + ["Frame"] * 4 + ["Chunk"] + ["Frame"] * 2 + ["Chunk", "Done"]
FIELDS_UNCACHED = {**FIELDS, "cache": "none"}


class Cut(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A response's stream that is lost after some pieces."""

    def __init__(self, stream: Any, pieces: int) -> None:
        self._stream, self._pieces = stream, pieces

    def __iter__(self) -> Iterator[bytes]:
        for count, piece in enumerate(self._stream):
            if count == self._pieces:
                raise httpx.ReadError("cut")
            yield piece

    async def __aiter__(self) -> AsyncIterator[bytes]:
        count = 0
        async for piece in self._stream:
            if count == self._pieces:
                raise httpx.ReadError("cut")
            count += 1
            yield piece

    def close(self) -> None:
        self._stream.close()

    async def aclose(self) -> None:
        await self._stream.aclose()


class Cutter(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """Cuts every stream off after some pieces; refuses the requests that it is told to."""

    def __init__(self, kind: Kind, pieces: int, refused: tuple[int, ...] = ()) -> None:
        self._inner: Any = httpx.AsyncHTTPTransport() if kind.asynchronous else httpx.HTTPTransport()
        self._pieces, self._refused = pieces, refused
        self.requests: list[httpx.Request] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self._note(request)
        return self._cut(request, self._inner.handle_request(request))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self._note(request)
        return self._cut(request, await self._inner.handle_async_request(request))

    def close(self) -> None:
        self._inner.close()

    async def aclose(self) -> None:
        await self._inner.aclose()

    def _note(self, request: httpx.Request) -> None:
        self.requests.append(request)
        if len(self.requests) - 1 in self._refused:
            raise httpx.ConnectError("refused")

    def _cut(self, request: httpx.Request, response: httpx.Response) -> httpx.Response:
        if request.headers["Accept"] == "text/event-stream":
            response.stream = Cut(response.stream, self._pieces)
        return response


def test_events_have_types(client: Any) -> None:
    events = list(client.rollouts.stream(**FIELDS))
    assert [type(event).__name__ for event in events] == NAMES
    assert [event.id for event in events] == list(range(11))
    done = events[-1]
    assert isinstance(done, Done) and done.rollout.status == "succeeded"
    assert [event.status for event in events if isinstance(event, Status)] == ["queued", "running"]
    assert {event.rollout_id for event in events if isinstance(event, Status)} == {done.rollout.id}
    assert tuple(event.stats for event in events if isinstance(event, Chunk)) == done.rollout.stats.chunks
    frames = [event for event in events if isinstance(event, Frame)]
    assert [(frame.index, frame.chunk) for frame in frames] == [
        (0, 0),
        (1, 0),
        (2, 0),
        (3, 0),
        (4, 1),
        (5, 1),
    ]
    arrays = client.rollouts.get(done.rollout.id).frames()
    for frame in frames:
        assert set(frame.arrays) == set(frame.pictures) == {"rgb", "depth"}
        assert np.array_equal(frame.arrays["rgb"], arrays["rgb"][frame.index])
        assert frame.arrays["depth"].dtype == np.float32
        scale = frame.pictures["depth"].scale
        assert scale is not None
        assert np.abs(frame.arrays["depth"] - arrays["depth"][frame.index]).max() <= scale
        assert frame.arrays is frame.arrays
        assert frame.pictures["rgb"].media_type == "image/png"
        assert frame.pictures["rgb"].data.startswith(b"\x89PNG")


def test_frames_come_before_the_rollout_has_ended(kind: Kind) -> None:
    gate = Gate(calls=10)
    with serving(ToyWorldModel(before_evaluate=gate)) as server, kind.connect(str(server.base_url)) as client:
        with client.rollouts.stream(**FIELDS_UNCACHED) as stream:
            assert stream.rollout_id is None
            early = [next(stream) for _ in range(7)]
            assert [type(event).__name__ for event in early] == NAMES[:7]
            assert (stream.last_id, client.rollouts.get(stream.rollout_id).frames_done) == (6, 4)
            gate.opened.set()
            assert [type(event).__name__ for event in stream] == NAMES[7:]
        assert gate.in_time and statuses(server) == ["succeeded"]


@pytest.mark.parametrize("pieces", [1, 2, 5])
def test_a_cut_stream_is_taken_up_again(kind: Kind, pieces: int, server: httpx.Client) -> None:
    before = len(statuses(server))
    cutter, hourglass = Cutter(kind, pieces, refused=(0, 2)), Hourglass()
    with kind.connect(str(server.base_url), transport=cutter, hourglass=hourglass) as client:
        events = list(client.rollouts.stream(**FIELDS))
    assert [event.id for event in events] == list(range(11))
    assert [type(event).__name__ for event in events] == NAMES
    assert len(statuses(server)) == before + 1
    first, *resumed = cutter.requests
    assert (first.headers["Prefer"], first.headers["Accept"]) == ("respond-async", "text/event-stream")
    posts = [request for request in cutter.requests if request.method == "POST"]
    assert len(posts) == 2 and len({request.headers["Idempotency-Key"] for request in posts}) == 1
    gets = [request for request in resumed if request.method == "GET"]
    assert gets and all("Last-Event-ID" in request.headers for request in gets)
    assert max(hourglass.pauses) <= 1.0  # each event is progress, so the delays begin anew


def scripted(*answers: Any) -> tuple[httpx.MockTransport, list[httpx.Request]]:
    """A server that answers with these in turn: events' texts, refusals or errors; the last one for ever."""
    requests: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        chosen = answers[min(len(requests), len(answers)) - 1]
        if isinstance(chosen, Exception):
            raise chosen
        if isinstance(chosen, str):
            headers = {"Content-Type": "text/event-stream; charset=utf-8", "X-Rollout-ID": "ro_1"}
            return httpx.Response(200, text=chosen, headers=headers)
        status, code = chosen
        error = {"code": code, "message": "no", "param": None, "request_id": "r"}
        return httpx.Response(status, json={"error": error}, headers={"Retry-After": "2"})

    return httpx.MockTransport(answer), requests


QUEUED = 'id: 0\nevent: status\ndata: {"status": "queued", "id": "ro_1"}\n\n'
NEWS = "id: 1\nevent: novelty\ndata: what?\n\n"


def test_a_stream_that_stops_short_is_lost_as_well(kind: Kind) -> None:
    transport, requests = scripted(QUEUED, (503, "draining"), QUEUED[:10])
    hourglass = Hourglass()
    with kind.connect(transport=transport, hourglass=hourglass, retries=4) as client:
        stream = client.rollouts.stream(**FIELDS)
        assert next(stream).id == 0
        with pytest.raises(ConnectionFailed, match="stopped before its end"):
            next(stream)
    assert hourglass.pauses == [0.5, 3.0, 2.0, 4.0]
    assert [request.headers.get("Last-Event-ID") for request in requests] == [None, *["0"] * 4]
    assert [request.method for request in requests] == ["POST"] + ["GET"] * 4  # and it goes on


def test_refusals_are_repeated_only_if_that_may_help(kind: Kind) -> None:
    transport, requests = scripted(
        (503, "queue_full"), (409, "idempotency_key_in_use"), QUEUED, (404, "unknown")
    )
    hourglass = Hourglass()
    with kind.connect(transport=transport, hourglass=hourglass) as client:
        stream = client.rollouts.stream(**FIELDS)
        next(stream)
        with pytest.raises(NotFound):
            next(stream)
    assert hourglass.pauses == [2.5, 3.0, 0.5]
    assert [request.method for request in requests[:4]] == ["POST"] * 3 + ["GET"]
    transport, _ = scripted((503, "queue_full"))
    with kind.connect(transport=transport, hourglass=hourglass, retries=2) as client:
        with pytest.raises(ServerBusy):
            list(client.rollouts.stream(**FIELDS))


def test_unknown_events_are_passed_over_and_bad_ones_are_not(kind: Kind) -> None:
    bad = 'id: 2\nevent: frame\ndata: {"index": 0}\n\n'
    for text, names in ((QUEUED + NEWS + QUEUED, ["Status", "Status"]), (QUEUED + bad, ["Status"])):
        transport, _ = scripted(text)
        with kind.connect(transport=transport, retries=0) as client:
            seen = []
            with pytest.raises(ConnectionFailed if text.count("status") > 2 else UnexpectedAnswer):
                for event in client.rollouts.events("ro_1"):
                    seen.append(type(event).__name__)
            assert seen == names


def test_other_answers_are_no_streams(kind: Kind) -> None:
    transport = httpx.MockTransport(lambda request: httpx.Response(200, html="<p>welcome</p>"))
    with kind.connect(transport=transport) as client, pytest.raises(UnexpectedAnswer, match="text/html"):
        list(client.rollouts.events("ro_1"))


def test_a_rollout_that_is_no_longer_kept(kind: Kind) -> None:
    error = 'event: error\ndata: {"error": {"code": "unknown_rollout", "message": "gone"}}\n\n'
    transport, _ = scripted(error)
    with kind.connect(transport=transport) as client, pytest.raises(NotFound) as caught:
        list(client.rollouts.events("ro_1"))
    assert caught.value.code == "unknown_rollout"


def test_events_of_any_rollout(client: Any) -> None:
    rollout = client.rollouts.create(**FIELDS)
    assert [event.id for event in client.rollouts.events(rollout.id)] == list(range(11))
    assert [event.id for event in client.rollouts.events(rollout.id, after=6)] == [7, 8, 9, 10]


def leave_by_break(client: Any) -> None:
    for event in client.rollouts.stream(**LONG):
        if isinstance(event, Frame):
            break


def leave_by_block(client: Any) -> None:
    with client.rollouts.stream(**LONG) as stream:
        next(stream)


def leave_by_error(client: Any) -> None:
    with pytest.raises(ZeroDivisionError), client.rollouts.stream(**LONG) as stream:
        for _ in stream:
            raise ZeroDivisionError


@pytest.mark.parametrize("leave", [leave_by_break, leave_by_block, leave_by_error])
def test_leaving_a_stream_cancels_its_rollout(kind: Kind, leave: Callable[[Any], None]) -> None:
    model = ToyWorldModel(delay=0.01)
    with serving(model) as server, kind.connect(str(server.base_url)) as client:
        leave(client)
        gc.collect()

        def cancelled() -> bool:
            client.models.get("toy")  # gives an event loop its turn
            return statuses(server) == ["cancelled"]

        assert until(cancelled)
        calls = len(model.batches)
        time.sleep(0.2)
        assert len(model.batches) == calls


def test_a_cancelled_task_cancels_its_rollout() -> None:
    with serving(ToyWorldModel(delay=0.01)) as server:

        async def read() -> None:
            async with AsyncClient(str(server.base_url)) as client:
                async with client.rollouts.stream(**LONG) as stream:
                    async for _ in stream:
                        pass

        async def main() -> None:
            task = asyncio.create_task(read())
            while not statuses(server):
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.3)
            while not task.done():  # also while it is cancelling the rollout, as anyio's scopes do
                task.cancel()
                await asyncio.sleep(0)
            assert task.cancelled()
            for _ in range(1000):
                if statuses(server) == ["cancelled"]:
                    return
                await asyncio.sleep(0.02)
            raise AssertionError("the rollout goes on")

        asyncio.run(main())


def test_who_only_looks_on_cancels_nothing(kind: Kind) -> None:
    gate = Gate(calls=10)
    with serving(ToyWorldModel(before_evaluate=gate)) as server, kind.connect(str(server.base_url)) as client:
        begun = client.rollouts.create(**FIELDS_UNCACHED, wait=False)
        with begun.events() as events:
            next(events)
        gate.opened.set()
        assert begun.wait(30).status == "succeeded"


def test_a_stream_that_was_read_to_its_end_leaves_its_rollout_alone(kind: Kind, server: httpx.Client) -> None:
    with kind.connect(str(server.base_url)) as client, client.rollouts.stream(**FIELDS) as stream:
        for event in stream:
            if isinstance(event, Done):
                break
    assert server.get(f"/v1/rollouts/{stream.rollout_id}").json()["status"] == "succeeded"


def test_a_rollout_that_somebody_else_cancels(kind: Kind) -> None:
    with serving(ToyWorldModel(delay=0.01)) as server, kind.connect(str(server.base_url)) as client:
        stream = client.rollouts.stream(**LONG)
        next(stream)
        server.delete(f"/v1/rollouts/{stream.rollout_id}")
        with pytest.raises(RolloutCancelled) as caught:
            list(stream)
        assert caught.value.rollout is not None and caught.value.rollout.status == "cancelled"


def test_a_cancellation_that_fails_is_logged(kind: Kind, caplog: pytest.LogCaptureFixture) -> None:
    transport, requests = scripted(QUEUED, httpx.ConnectError("refused"))
    with kind.connect(transport=transport, hourglass=Hourglass()) as client:
        with client.rollouts.stream(**FIELDS) as stream:
            next(stream)
    assert [request.method for request in requests] == ["POST", "GET"]
    assert "ro_1 may not have been cancelled" in caplog.text


def test_pictures_need_pillow_only_when_they_are_looked_at(
    server: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    importing = builtins.__import__

    def without_pillow(name: str, *arguments: Any) -> Any:
        if name.startswith("PIL"):
            raise ImportError(name)
        return importing(name, *arguments)

    with Client(str(server.base_url)) as client:
        events = list(client.rollouts.stream(**FIELDS))
        monkeypatch.setattr(builtins, "__import__", without_pillow)
        frame = next(event for event in events if isinstance(event, Frame))
        with pytest.raises(PillowMissing):
            frame.arrays  # noqa: B018
        assert isinstance(events[-1], Done)
        assert events[-1].rollout.frames()["rgb"].shape == (6, 48, 64, 3)
