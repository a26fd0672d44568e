"""Server-sent events of rollouts, against a running server."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest
from PIL import Image
from prometheus_client import CollectorRegistry

from app.follow import Follower
from app.frames import FrameReader, chunk_name
from app.live import LiveRollout
from app.metrics import Metrics
from app.schemas import OutputBody
from app.store import NPZ, InMemoryStore, RolloutRecord
from app.streaming import RolloutEvents, format_event, list_events
from app.tracing import Tracing
from app.views import Artifacts
from tests.app.conftest import rollout_body, serving
from tests.toy import ToyWorldModel
from worldcache.core import (
    ChunkFinished,
    ChunkStats,
    RolloutEnded,
    RolloutEvent,
    RolloutStarted,
    RolloutStats,
)

EVENTS = {"Accept": "text/event-stream"}
ASYNC = {"Prefer": "respond-async"}
LONG: dict[str, Any] = {"cache": "none", "actions": ["NOOP"] * 200}


class Sent(NamedTuple):
    """An event as a client gets it."""

    id: str | None
    name: str
    data: Any


def parse(lines: Iterable[str]) -> Iterator[Sent]:
    fields: dict[str, list[str]] = {}
    for line in lines:
        name, _, value = line.partition(":")
        if not line and fields:
            yield Sent(
                fields.get("id", [None])[0],  # type: ignore[list-item]
                fields["event"][0],
                json.loads("\n".join(fields["data"])),
            )
            fields = {}
        elif name:
            fields.setdefault(name, []).append(value.removeprefix(" "))


def events_of(client: httpx.Client, rollout_id: str, last: int | None = None) -> list[Sent]:
    """All events of a rollout from behind an id on."""
    headers = {} if last is None else {"Last-Event-ID": str(last)}
    response = client.get(f"/v1/rollouts/{rollout_id}/events", headers=headers)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    return list(parse(response.text.splitlines()))


def post_stream(client: httpx.Client, **changes: Any) -> list[Sent]:
    response = client.post("/v1/rollouts", json=rollout_body(**changes), headers=EVENTS)
    assert response.status_code == 200, response.text
    return list(parse(response.text.splitlines()))


def picture(uri: str) -> np.ndarray:
    head, _, data = uri.partition(",")
    assert head in ("data:image/png;base64", "data:image/jpeg;base64")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


@dataclass
class Gate:
    """Lets ``calls`` backbone calls through, then holds the model until it is opened."""

    calls: int
    opened: threading.Event = field(default_factory=threading.Event)
    in_time: bool = True

    def __call__(self, rows: Sequence[Any]) -> None:
        self.calls -= 1
        if self.calls < 0:
            self.in_time = self.opened.wait(20) and self.in_time


def test_events_come_in_order_and_are_numbered(client: httpx.Client) -> None:
    response = client.post("/v1/rollouts", json=rollout_body(stream=True))
    assert response.status_code == 200
    events = list(parse(response.text.splitlines()))
    frames = ["frame"] * 4
    assert [e.name for e in events] == ["status"] * 2 + frames + ["chunk"] + frames[:2] + ["chunk", "done"]
    assert [e.id for e in events] == [str(i) for i in range(len(events))]
    assert [e.data["status"] for e in events[:2]] == ["queued", "running"]
    shown = [(e.data["index"], e.data["chunk"]) for e in events if e.name == "frame"]
    assert shown == [(0, 0), (1, 0), (2, 0), (3, 0), (4, 1), (5, 1)]
    rollout = events[-1].data
    assert client.get(f"/v1/rollouts/{rollout['id']}").json() == rollout
    assert [e.data for e in events if e.name == "chunk"] == rollout["stats"]["chunks"]
    headers = response.headers
    assert headers["location"] == f"/v1/rollouts/{rollout['id']}"
    assert headers["x-rollout-id"] == rollout["id"] == events[0].data["id"]
    assert (headers["cache-control"], headers["x-accel-buffering"]) == ("no-store", "no")


def test_the_list_of_events_only_grows_at_its_end() -> None:
    record = a_record()
    seen = [list_events(record)]

    def see() -> None:
        seen.append(list_events(record))

    record.status, record.started_at = "running", 1.0
    see()
    for end in (4, 6):
        record.chunk_ends.append(end)
        see()
    record.status = "succeeded"
    see()
    for before, after in pairwise(seen):
        assert after[: len(before)] == before
    assert [len(events) for events in seen] == [1, 2, 7, 10, 11]
    record.status = "cancelled"
    assert [event.name for event in list_events(record)][-2:] == ["chunk", "error"]


def test_lines_of_data_are_fields_of_their_own() -> None:
    assert format_event(3, "frame", "a\nb\r\nc\rd") == (
        b"id: 3\nevent: frame\ndata: a\ndata: b\ndata: c\ndata: d\n\n"
    )


def test_the_first_frame_comes_before_the_second_chunk_is_made() -> None:
    gate = Gate(calls=10)
    with serving(ToyWorldModel(before_evaluate=gate)) as client:
        body = rollout_body(cache="none")
        with client.stream("POST", "/v1/rollouts", json=body, headers=EVENTS) as response:
            events = parse(response.iter_lines())
            early = [next(events).name for _ in range(7)]
            assert early == ["status"] * 2 + ["frame"] * 4 + ["chunk"]
            path = response.headers["location"]
            assert client.get(path).json()["frames_done"] == 4
            live = client.get(f"{path}/frames/3")
            assert live.headers["content-type"] == "image/png"
            early_error = client.get(f"{path}/frames/4")
            assert (early_error.status_code, early_error.json()["error"]["code"]) == (409, "not_finished")
            assert client.get(f"{path}/frames/6").status_code == 404
            gate.opened.set()
            assert [event.name for event in events] == ["frame", "frame", "chunk", "done"]
        assert gate.in_time
        assert client.get(f"{path}/frames/3").content == live.content


def test_any_event_can_be_resumed_from(client: httpx.Client) -> None:
    events = post_stream(client)
    rollout_id = events[0].data["id"]
    assert events_of(client, rollout_id) == events
    for last in range(len(events)):
        assert events_of(client, rollout_id, last) == events[last + 1 :]
    asked = client.get(f"/v1/rollouts/{rollout_id}/events", params={"last_event_id": 8})
    assert list(parse(asked.text.splitlines())) == events[9:]


@pytest.mark.parametrize("last", ["x", "-1", "1.5", "11", "٣", "9" * 5000])
def test_a_bad_last_event_id_is_refused(client: httpx.Client, last: str) -> None:
    rollout_id = client.post("/v1/rollouts", json=rollout_body()).json()["id"]
    path = f"/v1/rollouts/{rollout_id}/events"
    header = client.get(path, headers={"Last-Event-ID": last.encode()})
    query = client.get(path, params={"last_event_id": last})
    for response, param in ((header, "Last-Event-ID"), (query, "last_event_id")):
        assert (response.status_code, response.json()["error"]["param"]) == (422, param)


def test_frames_are_those_of_the_npz(client: httpx.Client) -> None:
    events = post_stream(client)
    frames = [event.data for event in events if event.name == "frame"]
    arrays = np.load(io.BytesIO(client.get(events[-1].data["artifacts"]["npz"]).content))
    assert len(frames) == len(arrays["rgb"]) == 6
    for frame in frames:
        index, scale = frame["index"], frame["depth_scale"]
        assert np.array_equal(picture(frame["rgb"]), arrays["rgb"][index])
        counts = picture(frame["depth"]).astype(np.float64)
        assert np.abs(counts * scale - arrays["depth"][index]).max() <= scale
        single = client.get(f"/v1/rollouts/{events[-1].data['id']}/frames/{index}")
        assert base64.b64encode(single.content).decode() == frame["rgb"].partition(",")[2]


def test_frames_hold_what_was_asked_for(client: httpx.Client) -> None:
    frame = post_stream(client, output={"format": "jpeg", "modalities": ["depth"]})[2].data
    assert set(frame) == {"index", "chunk", "depth"}
    assert frame["depth"].startswith("data:image/jpeg;")
    events = post_stream(client, output={"format": "none"})
    assert events[2].data == {"index": 0, "chunk": 0}
    inline = post_stream(client, output={"format": "npz", "inline": True})[-1].data
    assert inline["artifacts"]["inline"]["npz"]["base64"]


def test_readers_of_a_live_rollout_see_what_later_ones_see() -> None:
    gate = Gate(calls=10)
    with serving(ToyWorldModel(before_evaluate=gate)) as client, ThreadPoolExecutor(3) as pool:
        body = rollout_body(cache="none")
        rollout_id = client.post("/v1/rollouts", json=body, headers=ASYNC).json()["id"]
        readers = [pool.submit(events_of, client, rollout_id, last) for last in (None, None, 0)]
        time.sleep(0.2)
        gate.opened.set()
        first, second, third = (reader.result(30) for reader in readers)
        assert first == second == events_of(client, rollout_id)
        assert third == first[1:]
        assert first[-1].name == "done"


def test_silence_is_filled_with_comments() -> None:
    gate = Gate(calls=3)
    model = ToyWorldModel(before_evaluate=gate)
    with serving(model, stream_keepalive_seconds=0.05) as client:
        with client.stream("POST", "/v1/rollouts", json=rollout_body(stream=True)) as response:
            lines: list[str] = []
            for line in response.iter_lines():
                lines.append(line)
                if lines.count(": keep-alive") == 3:
                    gate.opened.set()
        assert gate.in_time
        assert [event.name for event in parse(x for x in lines if not x.startswith(":"))][-1] == "done"


def cancelled(client: httpx.Client) -> bool:
    """True once the only rollout has been cancelled."""
    for _ in range(500):
        (rollout,) = client.get("/v1/rollouts").json()["data"]
        if rollout["status"] not in ("queued", "running"):
            return bool(rollout["status"] == "cancelled")
        time.sleep(0.02)
    return False


def test_a_stream_that_its_client_leaves_is_cancelled() -> None:
    model = ToyWorldModel(delay=0.02)
    with serving(model) as client:
        headers = {**EVENTS, "Idempotency-Key": "k"}
        with client.stream("POST", "/v1/rollouts", json=rollout_body(**LONG), headers=headers) as response:
            first = next(parse(response.iter_lines()))
        assert cancelled(client)
        calls = len(model.batches)
        last = events_of(client, first.data["id"])[-1]
        assert (last.name, last.data["error"]["code"]) == ("error", "rollout_cancelled")
        assert last.data["rollout"]["status"] == "cancelled"
        time.sleep(0.2)
        assert len(model.batches) == calls
        with client.stream("POST", "/v1/rollouts", json=rollout_body(**LONG), headers=headers) as response:
            assert response.headers["x-rollout-id"] != first.data["id"]


def test_those_who_only_look_on_cancel_nothing() -> None:
    gate = Gate(calls=10)
    with serving(ToyWorldModel(before_evaluate=gate)) as client, ThreadPoolExecutor(1) as pool:
        done = pool.submit(post_stream, client, cache="none")
        while not (data := client.get("/v1/rollouts").json()["data"]):
            time.sleep(0.01)
        with client.stream("GET", f"/v1/rollouts/{data[0]['id']}/events") as response:
            next(response.iter_lines())
        time.sleep(0.1)
        gate.opened.set()
        assert done.result(30)[-1].name == "done"


def test_a_detached_stream_goes_on_and_is_resumed() -> None:
    gate = Gate(calls=10)
    with serving(ToyWorldModel(before_evaluate=gate)) as client:
        headers, body = {**EVENTS, **ASYNC}, rollout_body(cache="none")
        with client.stream("POST", "/v1/rollouts", json=body, headers=headers) as response:
            assert response.headers["preference-applied"] == "respond-async"
            events = parse(response.iter_lines())
            before = [next(events) for _ in range(4)]
        time.sleep(0.1)
        gate.opened.set()
        rollout_id = before[0].data["id"]
        after = events_of(client, rollout_id, int(before[-1].id or -1))
        assert before + after == events_of(client, rollout_id)
        assert after[-1].name == "done"


def test_a_key_stands_for_one_rollout_also_with_streams(client: httpx.Client) -> None:
    headers = {**EVENTS, "Idempotency-Key": "streamed"}
    first, again = (client.post("/v1/rollouts", json=rollout_body(), headers=headers) for _ in range(2))
    assert first.text == again.text
    other = client.post("/v1/rollouts", json=rollout_body(seed=9), headers=headers)
    assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_key_reused")


def test_what_is_refused_is_no_stream(client: httpx.Client) -> None:
    response = client.post("/v1/rollouts", json=rollout_body(model="no"), headers=EVENTS)
    assert (response.status_code, response.json()["error"]["param"]) == (422, "model")
    assert client.get("/v1/rollouts/ro_no/events").status_code == 404


def test_json_goes_before_events_if_it_is_preferred(client: httpx.Client) -> None:
    accept = {"Accept": "application/json, text/event-stream"}
    assert client.post("/v1/rollouts", json=rollout_body(), headers=accept).json()["status"] == "succeeded"


def test_a_failed_rollout_keeps_the_frames_before_its_error() -> None:
    def fail_late(rows: Sequence[Any]) -> None:
        if rows[0].condition[0] == 3:
            raise RuntimeError("/secret/path is broken")

    with serving(ToyWorldModel(before_evaluate=fail_late)) as client:
        events = post_stream(client, actions=["NOOP"] * 4 + ["ATTACK"])
        assert [event.name for event in events] == ["status"] * 2 + ["frame"] * 4 + ["chunk", "error"]
        error, rollout = events[-1].data["error"], events[-1].data["rollout"]
        assert error["code"] == rollout["error"]["code"] == "rollout_failed"
        assert error["request_id"] and rollout["status"] == "failed" and "secret" not in str(events)
        assert events_of(client, rollout["id"])[:-1] == events[:-1]
        path = f"/v1/rollouts/{rollout['id']}"
        assert client.get(f"{path}/frames/3").status_code == 200
        for missing in ("frames/4", "frames.npz"):
            response = client.get(f"{path}/{missing}")
            assert (response.status_code, response.json()["error"]["code"]) == (409, "no_frames")


def test_a_chunk_that_cannot_be_kept_fails_the_rollout(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(frames: object) -> bytes:
        raise MemoryError("a secret path")

    monkeypatch.setattr("app.follow.pack_chunk", full)
    with serving(ToyWorldModel(delay=0.01)) as client:
        events = post_stream(client, **LONG)
        assert [event.name for event in events] == ["status", "status", "error"]
        assert events[-1].data["error"]["code"] == "rollout_failed" and "secret" not in str(events)


def test_open_streams_end_with_their_rollouts_when_the_server_stops() -> None:
    with ThreadPoolExecutor(1) as pool, httpx.Client(timeout=30) as other:
        with serving(ToyWorldModel(delay=0.02)) as client:
            body = rollout_body(cache="none", actions=["NOOP"] * 16)  # 40 calls: 0.8 s and more
            rollout_id = client.post("/v1/rollouts", json=body, headers=ASYNC).json()["id"]
            other.base_url = client.base_url
            reader = pool.submit(events_of, other, rollout_id)
            time.sleep(0.2)
        assert reader.result(30)[-1].name == "done"


class Script:
    """A job whose events are known beforehand."""

    def __init__(self, *script: RolloutEvent) -> None:
        self._script = script

    async def events(self) -> AsyncIterator[RolloutEvent]:
        for event in self._script:
            yield event

    def cancel(self) -> None:
        raise AssertionError("nothing is wrong")


def chunk(index: int, frames: int) -> ChunkFinished:
    values = np.arange(frames * 6, dtype=np.float32).reshape(frames, 2, 3) + 100 * index
    return ChunkFinished(0, {"depth": values}, ChunkStats(index, "F", (None,), None))


def a_record() -> RolloutRecord:
    return RolloutRecord("ro", "me", "toy", "none", 0, 6, OutputBody(), {})


def a_store(**limits: float) -> InMemoryStore:
    return InMemoryStore(**{"max_rollouts": 9, "max_bytes": 10**9, "ttl_seconds": 60, **limits})  # type: ignore[arg-type]


def test_chunks_become_one_file_at_the_end() -> None:
    async def run() -> None:
        store, record = a_store(), a_record()
        await store.add(record)
        chunks = [chunk(0, 4), chunk(1, 2)]
        seen: list[tuple[bool, ...]] = []

        async def kept() -> tuple[bool, ...]:
            names = (chunk_name(0), chunk_name(1), NPZ)
            return tuple([await store.get_artifact(record.id, name) is not None for name in names])

        job = Script(RolloutStarted(0.0), *chunks)
        follower = Follower(store, Metrics(CollectorRegistry()), Tracing())
        await follower.follow(LiveRollout(record, job))
        seen.append(await kept())
        reader = FrameReader(store, record)
        for index in (0, 3, 4, 5, 1):
            file, place = await reader.find(index)
            part = chunks[index >= 4].frames["depth"]
            assert np.array_equal(file.read("depth", place, place + 1)[0], part[index % 4])
        ended = RolloutEnded("succeeded", RolloutStats("none"))
        await follower.follow(LiveRollout(record, Script(ended)))
        seen.append(await kept())
        assert seen == [(True, True, False), (False, False, True)]
        whole = np.concatenate([part.frames["depth"] for part in chunks])
        file, place = await FrameReader(store, record).find(5)
        assert (place, record.status) == (5, "succeeded")
        assert np.array_equal(file.all("depth"), whole)
        assert np.array_equal(file.read("depth", 1, 3), whole[1:3])

    asyncio.run(run())


def test_the_artifacts_of_live_rollouts_count() -> None:
    async def run() -> None:
        store = a_store(max_bytes=100)
        finished, live = replace(a_record(), id="old", status="succeeded"), a_record()
        for record in (finished, live):
            await store.add(record)
        await store.put_artifact("old", NPZ, bytes(60))
        for index in range(4):
            await store.put_artifact("ro", chunk_name(index), bytes(10))
        assert await store.get("old") is finished
        await store.put_artifact("ro", "whole", bytes(40), replacing=[chunk_name(i) for i in range(4)])
        assert await store.get("old") is finished
        await store.put_artifact("ro", chunk_name(4), b"x")
        assert await store.get("old") is None
        await store.put_artifact("ro", chunk_name(5), bytes(200))
        assert await store.get("ro") is live

    asyncio.run(run())


def test_a_reader_is_told_that_a_rollout_is_no_longer_kept() -> None:
    async def run() -> list[bytes]:
        record = replace(a_record(), status="succeeded", started_at=1.0, chunk_ends=[4, 6])
        store, info = a_store(), ToyWorldModel().info
        rollouts: Any = None  # is not asked
        events = RolloutEvents(
            record, info, store, rollouts, Artifacts(store, record, info, 1), keep_alive=9, request_id="req"
        )
        return [event async for event in events.read()]

    *_, last = parse(b"".join(asyncio.run(run())).decode().splitlines())
    assert (last.name, last.id, last.data["error"]["code"]) == ("error", None, "unknown_rollout")
