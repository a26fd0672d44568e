"""Live connections of both clients, against a running server."""

from __future__ import annotations

import importlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import pytest
from websockets.sync.server import ServerConnection, serve

from tests.app.conftest import serving
from tests.app.test_sessions import Gate
from tests.client.conftest import Hourglass, Kind
from tests.client.proxy import CuttingProxy, proxying
from tests.client.test_sessions import FIELDS, LEFT, RIGHT, SESSION, scripted_session
from tests.toy import ToyWorldModel
from worldcache.client import (
    BadRequest,
    CacheChanged,
    ConnectionFailed,
    InvalidInput,
    LiveFrame,
    LiveStep,
    NotFound,
    Paused,
    Pong,
    Ready,
    Refusal,
    Resumed,
    Rewound,
    TakenOver,
    Unauthorized,
    UnexpectedAnswer,
    WaitedTooLong,
    WebSocketsMissing,
)


@pytest.fixture
def proxy(server: httpx.Client) -> Iterator[CuttingProxy]:
    with proxying(str(server.base_url)) as running:
        yield running


class Patience(Hourglass):
    """Pauses are short, but they are some."""

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        time.sleep(0.1)


def until(live: Any, kind: type[Any]) -> Any:
    """The next message of this type."""
    for message in live:
        if isinstance(message, kind):
            return message
    raise AssertionError(f"the connection ended before {kind.__name__}")


def frames(live: Any, count: int) -> list[LiveFrame]:
    """So many messages, all of which must be frames."""
    heard = [live.receive(20) for _ in range(count)]
    assert all(isinstance(message, LiveFrame) for message in heard), heard
    return heard


def test_in_lockstep_an_action_is_a_step(client: Any) -> None:
    with client.sessions.create(**FIELDS) as session, session.fork() as other:
        with session.stream() as live:
            ready = next(live)
            assert isinstance(ready, Ready) and ready.session.id == session.id
            assert (ready.mode, ready.modalities, ready.format, ready.unanswered) == (
                "lockstep",
                ("rgb", "depth"),
                "png",
                (),
            )
            assert [live.send("MOVE_LEFT"), live.send(np.int64(2))] == [0, 1]
            heard = frames(live, 16)
            assert [frame.seq for frame in heard] == [0] * 8 + [1] * 8
            assert [frame.index for frame in heard[::2]] == list(range(8))
            assert [frame.modality for frame in heard[:2]] == ["rgb", "depth"]
            first = heard[0]
            assert (first.decisions, first.skip_ratio, first.dropped) == ("FFFF", 0.0, 0)
            assert first.action_to_frame_ms > 0 and first.picture.media_type == "image/png"
            assert live.send_step(["ATTACK", "NOOP"]) == 2
            last = frames(live, 8)
        steps = [other.step(LEFT), other.step(RIGHT), other.step(["ATTACK", "NOOP", "NOOP", "NOOP"])]
        for name in ("rgb", "depth"):
            shown = np.stack([frame.array for frame in [*heard, *last] if frame.modality == name])
            assert shown.dtype == steps[0].frames[name].dtype
            assert np.array_equal(shown, np.concatenate([step.frames[name] for step in steps]))
        assert session.step(LEFT).step_id == 3  # it has seen that the connection took steps
        assert session.num_frames == 16


def test_a_free_world_goes_on_by_itself(client: Any) -> None:
    with client.sessions.create(**FIELDS) as session:
        with session.stream(mode="free", modalities=["rgb"], format="jpeg") as live:
            assert next(live).mode == "free"
            with pytest.raises(WaitedTooLong):
                live.receive(0.05)
            live.send("MOVE_LEFT")
            heard = frames(live, 12)
            assert {frame.seq for frame in heard} == {0}
            assert {frame.picture.media_type for frame in heard} == {"image/jpeg"}
            seq = live.send("MOVE_RIGHT")
            while live.receive(20).seq != seq:
                pass
            live.pause()
            assert until(live, Paused) == Paused("client")
            live.resume()
            assert until(live, Resumed) == Resumed()
            assert until(live, LiveFrame).seq == seq
            live.reset()
            assert until(live, Rewound) == Rewound(0, None, 0)
            with pytest.raises(WaitedTooLong):
                live.receive(0.05)


def test_everything_that_can_be_said(client: Any) -> None:
    with client.sessions.create(**{**FIELDS, "num_inference_steps": 10}) as session:
        with session.stream(modalities=["rgb"], details=True) as live:
            next(live)
            live.ping()
            live.ping("a")
            assert [live.receive(20), live.receive(20)] == [Pong(None), Pong("a")]
            live.cache({"policy": "interval", "interval": 5})
            changed = live.receive(20)
            assert changed == CacheChanged("interval", {"policy": "interval", "interval": 5})
            for _ in range(2):
                live.send("MOVE_LEFT")
                step = live.receive(20)
                assert isinstance(step, LiveStep) and step.stats.chunks[0].decisions == "F....F...."
                assert [frame.index for frame in frames(live, 4)] == list(
                    range(step.first_frame, step.first_frame + step.num_frames)
                )
            assert (step.step_id, step.committed_step_id, step.seq, step.token_maps) == (1, 1, 1, ())
            live.rewind(4)
            assert live.receive(20) == Rewound(4, 0, 0)
            live.reset()
            assert live.receive(20) == Rewound(0, None, 0)


def test_refusals_come_as_messages(client: Any) -> None:
    with client.sessions.create(**FIELDS) as session, session.stream() as live:
        next(live)
        seq = live.send("JUMP")
        refusal = live.receive(20)
        assert isinstance(refusal, Refusal)
        assert (refusal.code, refusal.param, refusal.seq) == ("unknown_action", "action", seq)
        assert refusal.retry_after is None and refusal.message and refusal.request_id
        live.rewind(3)
        assert live.receive(20).param == "to_frame"
        with pytest.raises(InvalidInput):
            live.send(object())
        live.send("MOVE_LEFT")
        assert len(frames(live, 8)) == 8


def test_what_is_refused_before_it_stands_is_raised(client: Any) -> None:
    with client.sessions.create(**FIELDS) as session:
        for options, param in (({"mode": "fast"}, "mode"), ({"modalities": ["sound"]}, "modalities")):
            with pytest.raises(BadRequest) as caught, session.stream(**options):
                pass
            assert caught.value.param == param and caught.value.request_id
    live = session.stream()
    with pytest.raises(NotFound) as gone:
        next(live)
    assert (gone.value.status, gone.value.code) == (410, "session_gone")
    assert list(live) == []
    with pytest.raises(ConnectionFailed, match="closed"):
        live.send("MOVE_LEFT")


def test_keys_are_sent_with_the_connection(kind: Kind) -> None:
    with serving(api_keys="alpha") as server:
        with kind.connect(str(server.base_url), api_key="alpha") as client:
            session = client.sessions.create(**FIELDS)
            with session.stream() as live:
                assert isinstance(next(live), Ready)
        with driving(kind, str(server.base_url), api_key="beta") as live, pytest.raises(Unauthorized):
            next(live)


def test_a_lost_connection_is_taken_up_again(kind: Kind, server: httpx.Client, proxy: CuttingProxy) -> None:
    hourglass = Patience()
    with kind.connect(proxy.url, hourglass=hourglass) as client, client.sessions.create(**FIELDS) as session:
        with session.stream(modalities=["rgb"]) as live:
            next(live)
            live.send("MOVE_LEFT")
            frames(live, 4)
            proxy.cut()
            again = next(live)
            assert isinstance(again, Ready) and again.unanswered == ()
            assert again.session.num_frames == 4 and len(hourglass.pauses) == 1
            assert live.send("MOVE_RIGHT") == 1
            assert [(frame.index, frame.seq) for frame in frames(live, 4)] == [(i, 1) for i in range(4, 8)]
            proxy.cut()
            while not hourglass.pauses[1:]:  # what is sent into a cut connection may still seem to be sent
                live.send("MOVE_LEFT")
            assert isinstance(until(live, Ready), Ready)
        proxy.cut()
        assert session.step(LEFT).frames["rgb"].shape[0] == 4


def test_actions_without_an_answer_are_told(kind: Kind) -> None:
    gate = Gate()
    with serving(ToyWorldModel(before_evaluate=gate)) as server, proxying(str(server.base_url)) as proxy:
        with kind.connect(proxy.url, hourglass=Hourglass()) as client:
            session = client.sessions.create(**FIELDS)
            with session.stream(modalities=["rgb"]) as live:
                next(live)
                live.send("MOVE_LEFT")
                frames(live, 4)
                gate.close()
                live.send("MOVE_LEFT")
                live.send("MOVE_RIGHT")
                assert gate.reached.wait(20)
                proxy.cut()
                gate.open()
                ready = until(live, Ready)
                assert ready.unanswered == (1, 2)
                assert ready.session.num_frames in (8, 12)  # the one on its way, and perhaps the next
                assert live.send("ATTACK") == 3
                assert frames(live, 4)[0].index == ready.session.num_frames


def test_a_free_world_goes_on_after_a_reconnection(
    kind: Kind, server: httpx.Client, proxy: CuttingProxy
) -> None:
    with (
        kind.connect(proxy.url, hourglass=Hourglass()) as client,
        client.sessions.create(**FIELDS) as session,
    ):
        with session.stream(mode="free", modalities=["rgb"]) as live:
            next(live)
            seq = live.send("MOVE_LEFT")
            live.send("JUMP")
            assert until(live, Refusal).seq == 1
            assert until(live, LiveFrame).seq == seq
            proxy.cut()
            ready = until(live, Ready)
            frame = until(live, LiveFrame)
            assert frame.index >= ready.session.num_frames and frame.seq == seq
            live.pause()
            until(live, Paused)
            proxy.cut()
            until(live, Ready)
            assert live.receive(20) == Paused("client")
            with pytest.raises(WaitedTooLong):
                live.receive(0.1)
            live.resume()
            assert live.receive(20) == Resumed()
            assert live.receive(20).seq == seq


def test_a_server_that_is_gone_is_given_up(kind: Kind, server: httpx.Client) -> None:
    hourglass = Hourglass()
    with proxying(str(server.base_url)) as proxy:
        with kind.connect(proxy.url, hourglass=hourglass, retries=3) as client:
            session = client.sessions.create(**FIELDS)
            live = session.stream()
            assert isinstance(next(live), Ready)
            proxy.close()
            with pytest.raises(ConnectionFailed, match=session.id):
                next(live)
            assert hourglass.pauses == [0.5, 1.0, 2.0]
            assert list(live) == []


def test_another_connection_takes_over(client: Any) -> None:
    with client.sessions.create(**FIELDS) as session, session.stream() as first:
        next(first)
        with client.sessions.get(session.id).stream() as second:
            next(second)
            with pytest.raises(TakenOver):
                next(first)
            second.send("MOVE_LEFT")
            assert frames(second, 2)


def test_a_closed_session_ends_its_connection(client: Any) -> None:
    session = client.sessions.create(**FIELDS)
    with session.stream() as live:
        next(live)
        session.close()
        with pytest.raises(NotFound) as caught:
            next(live)
        assert (caught.value.status, caught.value.code) == (410, "session_gone")


def test_a_lost_step_is_undone_first(kind: Kind) -> None:
    gate = Gate()
    with serving(ToyWorldModel(before_evaluate=gate), retry_after_seconds=1) as server:
        with kind.connect(str(server.base_url), timeout=0.5, retries=0) as impatient:
            session = impatient.sessions.create(**FIELDS)
            gate.close()
            with pytest.raises(ConnectionFailed):
                session.step(LEFT)
            gate.open()
            while server.get(f"/v1/sessions/{session.id}").json()["frames"] == 0:
                pass
            with session.stream() as live:
                assert next(live).session.num_frames == 0


@pytest.mark.parametrize("call", ["step", "rewind", "refresh and step"])
def test_a_step_that_a_connection_left_on_its_way_is_waited_for(kind: Kind, call: str) -> None:
    gate = Gate()

    class Opening(Patience):
        def sleep(self, seconds: float) -> None:
            gate.open()
            super().sleep(seconds)

    hourglass = Opening()
    with serving(ToyWorldModel(before_evaluate=gate), retry_after_seconds=1) as server:
        with kind.connect(str(server.base_url), hourglass=hourglass) as client:
            session = client.sessions.create(**FIELDS)
            with session.stream(modalities=["rgb"]) as live:
                next(live)
                live.send("MOVE_LEFT")
                frames(live, 4)
                gate.close()
                live.send("MOVE_LEFT")
                assert gate.reached.wait(20)
            if call == "rewind":
                session.rewind(4)
                assert session.num_frames == 4
            else:
                if call != "step":
                    session.refresh()
                assert session.step(RIGHT).step_id == 2
        assert len(hourglass.pauses) >= 1
        assert gate.actions == [1] * 8 + [2] * (0 if call == "rewind" else 4)


def test_closing_ends_the_iteration(client: Any) -> None:
    with client.sessions.create(**FIELDS) as session:
        live = session.stream()
        live.close()  # it was never opened
        assert list(live) == []
        with session.stream() as live:
            next(live)
        assert list(live) == []
        with pytest.raises(ConnectionFailed, match="closed"):
            live.receive()


def test_one_thread_sends_while_another_one_iterates(server: httpx.Client) -> None:
    with Kind(None).connect(str(server.base_url)) as client, client.sessions.create(**FIELDS) as session:
        heard: list[Any] = []
        with session.stream(modalities=["rgb"]) as live:
            reader = threading.Thread(target=lambda: heard.extend(live))
            reader.start()
            for _ in range(5):
                live.send("MOVE_LEFT")
            live.ping("end")
            while len(heard) < 22:
                reader.join(0.01)
        reader.join(20)
        assert not reader.is_alive()
        assert [message.seq for message in heard if isinstance(message, LiveFrame)] == [
            seq for seq in range(5) for _ in range(4)
        ]


@contextmanager
def driving(kind: Kind, url: str, **options: Any) -> Iterator[Any]:
    """A live connection of a session that is only made up."""

    def none(request: httpx.Request) -> httpx.Response:
        raise AssertionError(request.url)

    with kind.connect(url, transport=scripted_session(none), **options) as client:
        live = client.sessions.create(**FIELDS).stream()
        yield live
        live.close()


@contextmanager
def scripted(handle: Callable[[ServerConnection], None]) -> Iterator[str]:
    """The address of a server that handles connections so."""
    with serve(handle, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.socket.getsockname()[1]}"
        server.shutdown()
        thread.join(10)


def answering(*messages: str | bytes) -> Callable[[ServerConnection], None]:
    """A server that says these, whatever it is told, and then waits until the client goes."""

    def handle(connection: ServerConnection) -> None:
        for message in messages:
            connection.send(message)
        for _ in connection:
            pass

    return handle


READY = json.dumps(
    {"type": "ready", "session": SESSION, "mode": "lockstep", "modalities": ["rgb"], "format": "png"}
)


@pytest.mark.parametrize(
    "messages",
    [
        ["no"],
        ["[]"],
        ['{"type": "frame"}', b"?"],
        [b"?"],
        ['{"type": "frame"}', READY],
        ['{"type": "step"}'],
        ['{"type": "ready", "session": {}, "mode": "free", "modalities": [], "format": "png"}'],
        ["{}"],
    ],
)
def test_what_is_no_message(kind: Kind, messages: Sequence[str | bytes]) -> None:
    with scripted(answering(*messages)) as url, driving(kind, url) as live:
        with pytest.raises(UnexpectedAnswer):
            next(live)


def test_messages_of_a_newer_server_are_passed_over(kind: Kind) -> None:
    maps = [{"chunk": 0, "modality": "rgb", "grid": [1, 1, 3], "classes": "AAEC"}]
    step = {"type": "step", "step_id": 0, "committed_step_id": 0, "first_frame": 0, "frames": 4, "seq": 0}
    step |= {"stats": {"policy": "worldcache"}, "token_maps": maps}
    handle = answering('{"type": "news"}', READY, json.dumps(step))
    with scripted(handle) as url, driving(kind, url) as live:
        assert isinstance(next(live), Ready)
        (token_map,) = next(live).token_maps
        assert (token_map.modality, token_map.classes.dtype) == ("rgb", np.uint8)
        assert token_map.classes.tolist() == [[[0, 1, 2]]]


@pytest.mark.parametrize(("code", "tries"), [(1001, 3), (1011, 3), (1008, 1)])
def test_it_connects_again_unless_that_is_of_no_use(kind: Kind, code: int, tries: int) -> None:
    connections: list[ServerConnection] = []

    def handle(connection: ServerConnection) -> None:
        connections.append(connection)
        connection.send(READY)
        connection.close(code, "because")

    options = {"hourglass": Hourglass(), "retries": tries - 1}
    with scripted(handle) as url, driving(kind, url, **options) as live:
        with pytest.raises(ConnectionFailed, match=f"because .{code}"):
            list(live)
    assert len(connections) == tries


def test_a_connection_that_stood_for_long_is_taken_up_with_new_patience(kind: Kind) -> None:
    hourglass = Hourglass()
    connections: list[ServerConnection] = []

    def handle(connection: ServerConnection) -> None:
        connections.append(connection)
        connection.send(READY)
        if len(connections) == 4:
            connection.send('{"type": "pong", "id": null}')
        connection.recv()
        connection.close(1001)

    with scripted(handle) as url, driving(kind, url, hourglass=hourglass, retries=1) as live:
        for _ in range(3):
            assert isinstance(next(live), Ready)
            hourglass.now += 3600
            live.ping()
        assert isinstance(next(live), Ready)
        assert next(live) == Pong(None)
    assert hourglass.pauses == [0.5] * 3


def test_a_refused_connection_is_tried_again_if_that_may_help(kind: Kind) -> None:
    seen: list[Any] = []

    def refuse(connection: ServerConnection, request: Any) -> Any:
        seen.append(request)
        if len(seen) > 1:
            return None
        error = {"code": "draining", "message": "not now", "param": None, "request_id": "r"}
        response = connection.respond(503, json.dumps({"error": error}))
        response.headers["Retry-After"] = "2"
        return response

    hourglass = Hourglass()
    with serve(answering(READY), "127.0.0.1", 0, process_request=refuse) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.socket.getsockname()[1]}/base"
        with driving(kind, url, hourglass=hourglass, api_key="alpha") as live:
            assert isinstance(next(live), Ready)
        server.shutdown()
        thread.join(10)
    assert hourglass.pauses == [2.5]
    assert seen[0].path == "/base/v1/sessions/se_1/ws?mode=lockstep"
    assert seen[0].headers["Authorization"] == "Bearer alpha"
    assert seen[0].headers["User-Agent"].startswith("worldcache-client/")


def test_live_connections_need_websockets(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    def without(name: str) -> Any:
        raise ImportError(name)

    assert issubclass(WebSocketsMissing, ImportError)
    with kind.connect(transport=scripted_session(lambda request: httpx.Response(404))) as client:
        session = client.sessions.create(**FIELDS)
        monkeypatch.setattr(importlib, "import_module", without)
        with pytest.raises(WebSocketsMissing, match=r"worldcache\[client\]"):
            session.stream()
