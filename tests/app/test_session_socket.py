"""``WS /v1/sessions/{id}/ws`` against a running server."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from websockets.exceptions import ConnectionClosed, InvalidStatus

from app.browsers import same_origin
from tests.app.conftest import rollout_body, serving
from tests.app.sockets import Driver, driving
from tests.app.test_rollouts import metric
from tests.app.test_sessions import LEFT, Gate, error_of, opened, pixels, session_body, step
from tests.toy import ToyWorldModel
from worldcache.models.base import Row


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    """A server with room for the sessions of all tests."""
    with serving(max_sessions_per_client=128) as running:
        yield running


def image(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def refusal(client: httpx.Client, path: str, query: str = "", **options: Any) -> httpx.Response:
    """The response to a connection that is refused."""
    with pytest.raises(InvalidStatus) as caught, driving(client, path, query, **options):
        pass
    response = caught.value.response
    return httpx.Response(response.status_code, headers=dict(response.headers), content=bytes(response.body))


def closing_code(driver: Driver) -> int:
    """How the server closes the connection, after whatever else comes."""
    with pytest.raises(ConnectionClosed) as caught:
        while True:
            driver.connection.recv(20)
    assert caught.value.rcvd is not None
    return caught.value.rcvd.code


def eventually(true: Callable[[], bool]) -> None:
    for _ in range(2000):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come true")


def test_the_session_comes_first_and_nothing_happens_by_itself(client: httpx.Client) -> None:
    path = opened(client)
    with driving(client, path, "", ready=False) as driver:
        ready = driver.hear()
        assert ready["type"] == "ready"
        assert ready["session"] == client.get(path).json() | {"expires_at": ready["session"]["expires_at"]}
        assert (ready["mode"], ready["modalities"], ready["format"]) == ("lockstep", ["rgb", "depth"], "png")
        with pytest.raises(TimeoutError):
            driver.hear(0.2)
        assert client.get(path).json()["frames"] == 0


def test_frames_equal_those_of_steps_over_http(client: httpx.Client) -> None:
    path = opened(client, cache="balanced")
    answers = [step(client, opened(client, cache="balanced"), ["MOVE_LEFT", 1, 2, 3])]
    with driving(client, path, "") as driver:
        driver.say("action", actions=["MOVE_LEFT", 1, 2, 3], seq=7)
        heard = driver.frames(8)
    expected = answers[0]["frames"]
    chunk = answers[0]["stats"]["chunks"][0]
    for place, message in enumerate(heard):
        frame, name = expected[place // 2], ("rgb", "depth")[place % 2]
        assert (message["index"], message["modality"], message["seq"]) == (place // 2, name, 7)
        assert np.array_equal(image(message["image"]), pixels(frame[name]))
        assert (message["mime"], message["dropped"]) == ("image/png", 0)
        assert message["decisions"] == chunk["decisions"]
        assert message["skip_ratio"] == answers[0]["stats"]["skip_ratio"]
        assert message["action_to_frame_ms"] == heard[0]["action_to_frame_ms"] > 0
        assert message.get("scale") == frame.get(f"{name}_scale")
    assert client.get(path).json()["committed_step_id"] == 0


def test_the_query_chooses_pictures_and_details(client: httpx.Client) -> None:
    path = opened(client, cache="balanced")
    with driving(client, path, "modalities=depth&format=jpeg&details=true", ready=False) as driver:
        ready = driver.hear()
        assert (ready["modalities"], ready["format"]) == (["depth"], "jpeg")
        driver.act(0)
        details, *frames = driver.hear(), *driver.frames(4)
    assert details["type"] == "step"
    assert (details["step_id"], details["committed_step_id"], details["seq"]) == (0, 0, 0)
    assert (details["first_frame"], details["frames"]) == (0, 4)
    assert details["stats"]["chunks"][0]["token_classes"]["rgb"]["stable"] >= 0
    assert details["token_maps"] == []  # the toy's tokens form no grid
    assert {message["mime"] for message in frames} == {"image/jpeg"}
    assert "scale" not in frames[0]


def test_in_lockstep_every_message_is_a_step(client: httpx.Client) -> None:
    path = opened(client)
    with driving(client, path) as driver:
        for seq in range(10):
            driver.act(seq, seq % 4)
        frames = driver.frames(40)
    assert [message["index"] for message in frames] == list(range(40))
    assert [message["seq"] for message in frames] == [seq for seq in range(10) for _ in range(4)]
    assert client.get(f"{path}/snapshot").json()["actions"] == [n % 4 for n in range(10) for _ in range(4)]


def test_a_list_of_actions_is_held_to_the_end_of_its_step(client: httpx.Client) -> None:
    path = opened(client)
    with driving(client, path) as driver:
        driver.say("action", actions=[1, 2], seq=0)
        driver.frames(4)
    assert client.get(f"{path}/snapshot").json()["actions"] == [1, 2, 2, 2]


def test_a_free_world_goes_on_and_takes_what_waits() -> None:
    gate = Gate()
    with serving(ToyWorldModel(before_evaluate=gate)) as client:
        path = opened(client)
        gate.close()
        with driving(client, path, "modalities=rgb&mode=free") as driver:
            driver.act(0, 3)
            assert gate.reached.wait(20)
            for seq in (1, 2):
                driver.act(seq, seq)
            driver.say("action", actions=[3, 0], seq=3)
            driver.act(4, 2)
            driver.say("ping")
            assert driver.hear() == {"type": "pong", "id": None}
            gate.open()
            frames = driver.frames(20)
            driver.say("pause")
        assert [message["seq"] for message in frames] == [0] * 4 + [1, 2, 2, 2] + [3] * 4 + [4] * 8
        assert frames[16]["action_to_frame_ms"] == frames[12]["action_to_frame_ms"]
        actions = client.get(f"{path}/snapshot").json()["actions"]
        assert actions[:16] == [3] * 4 + [1, 2, 2, 2] + [3, 0, 0, 0] + [2] * 4


def test_pause_and_resume(client: httpx.Client) -> None:
    path = opened(client)
    with driving(client, path, "modalities=rgb&mode=free") as driver:
        driver.act(0)
        driver.frames(4)
        driver.say("pause")
        assert driver.hear_until("paused")[-1] == {"type": "paused", "reason": "client"}
        driver.act(1, 2)
        while True:  # what was on its way
            try:
                assert driver.hear(0.3)["seq"] == 0
            except TimeoutError:
                break
        driver.say("resume")
        assert driver.hear() == {"type": "resumed"}
        assert driver.hear()["seq"] == 1


def test_a_silent_client_does_not_keep_a_free_world_running() -> None:
    with serving(session_free_run_seconds=0.3) as client:
        path = opened(client)
        with driving(client, path, "modalities=rgb&mode=free") as driver:
            driver.act(0)
            heard = driver.hear_until("paused")
            assert heard[-1]["reason"] == "idle" and len(heard) > 4
            with pytest.raises(TimeoutError):
                while driver.hear(0.3)["type"] == "frame":
                    pass
            driver.say("resume")
            assert driver.hear() == {"type": "resumed"}
            driver.frames(4)


def test_reset_and_rewind_drop_what_waits_and_answer_behind_the_frames() -> None:
    gate = Gate()
    with serving(ToyWorldModel(before_evaluate=gate)) as client:
        path = opened(client)
        with driving(client, path) as driver:
            driver.act(0)
            first = driver.frames(4)
            driver.act(1, 2)
            driver.frames(4)
            gate.close()
            driver.act(2, 3)
            assert gate.reached.wait(20)
            driver.act(3)
            driver.act(4)
            driver.say("rewind", to_frame=8)
            driver.act(5)
            driver.say("reset")
            gate.open()
            heard = driver.hear_until("rewind")
            assert [message.get("seq") for message in heard[:-1]] == [2] * 4
            assert heard[-1] == {
                "type": "rewind", "frames": 8, "committed_step_id": 1, "dropped_actions": 2
            }  # fmt: skip
            reset = driver.hear_until("reset")[-1]
            assert (reset["frames"], reset["committed_step_id"]) == (0, -1)
            driver.act(6)
            again = driver.frames(4)
            assert [message["image"] for message in again] == [message["image"] for message in first]
            assert [message["index"] for message in again] == [0, 1, 2, 3]
            driver.say("rewind", to_frame=3)
            assert driver.error() == ("invalid_value", "to_frame", None)


def test_the_cache_changes_from_the_next_step_on(client: httpx.Client) -> None:
    path = opened(client, num_inference_steps=6)
    with driving(client, path) as driver:
        driver.act(0)
        assert driver.frames(4)[0]["decisions"] == "FFFFFF"
        driver.say("cache", cache={"policy": "interval", "interval": 2})
        assert driver.hear() == {
            "type": "cache",
            "policy": "interval",
            "cache": {"policy": "interval", "interval": 2},
        }
        driver.act(1)
        assert "." in driver.frames(4)[0]["decisions"]
        driver.say("cache", cache="slow")
        assert driver.error() == ("unknown_preset", "cache", None)


@pytest.mark.parametrize(
    ("message", "code", "param", "seq"),
    [
        ({"type": "action", "seq": 1}, "invalid_value", None, 1),
        ({"type": "action", "action": 1, "actions": [1], "seq": 1}, "invalid_value", None, 1),
        ({"type": "action", "action": 1}, "missing_field", "seq", None),
        ({"type": "action", "action": 1, "seq": "1"}, "invalid_value", "seq", None),
        ({"type": "action", "action": 1, "seq": -1}, "invalid_value", "seq", -1),
        ({"type": "action", "action": "JUMP", "seq": 1}, "unknown_action", "action", 1),
        ({"type": "action", "actions": [1, "JUMP"], "seq": 1}, "unknown_action", "actions.1", 1),
        ({"type": "action", "actions": [1] * 5, "seq": 1}, "invalid_value", "actions", 1),
        ({"type": "action", "action": 1, "seq": 1, "fast": True}, "unknown_field", "fast", 1),
        ({"type": "pause", "seq": 4}, "unknown_field", "seq", 4),
        ({"type": "ping", "id": [1]}, "invalid_value", "id", None),
        ({"type": "rewind"}, "missing_field", "to_frame", None),
        ({"type": "rewind", "to_frame": 4}, "invalid_value", "to_frame", None),
        ({"type": "cache"}, "missing_field", "cache", None),
        ({"type": "jump"}, "unknown_type", "type", None),
        ({"type": 3}, "unknown_type", "type", None),
        ({}, "missing_field", "type", None),
    ],
)
def test_what_is_wrong_is_named_and_the_socket_stays_open(
    client: httpx.Client, message: dict[str, Any], code: str, param: str | None, seq: int | None
) -> None:
    with driving(client, opened(client)) as driver:
        driver.connection.send(json.dumps(message))
        assert driver.error() == (code, param, seq)
        driver.act(1)
        driver.frames(4)


def test_numbers_grow_and_a_refused_one_may_come_again(client: httpx.Client) -> None:
    with driving(client, opened(client)) as driver:
        driver.act(5)
        driver.frames(4)
        driver.act(5)
        assert driver.error() == ("invalid_value", "seq", 5)
        driver.act(6, "JUMP")
        assert driver.error()[0] == "unknown_action"
        driver.act(6, 0)
        assert driver.frames(4)[0]["seq"] == 6


def test_the_line_is_bounded_and_keeps_what_it_took() -> None:
    gate = Gate()
    with serving(ToyWorldModel(before_evaluate=gate)) as client:
        path = opened(client, num_inference_steps=1)
        gate.close()
        with driving(client, path) as driver:
            driver.act(0)
            assert gate.reached.wait(20)
            for seq in range(1, 67):
                driver.act(seq)
            assert [driver.error() for _ in range(2)] == [
                ("too_many_actions", "seq", 65),
                ("too_many_actions", "seq", 66),
            ]
            gate.open()
            frames = driver.frames(65 * 4)
        assert [message["seq"] for message in frames[::4]] == list(range(65))


@pytest.mark.parametrize("text", ["{", "[1]", '"ping"', "\u0001", "[" * 5000, b"\x00"])
def test_what_cannot_be_read_is_endured_a_few_times(client: httpx.Client, text: str | bytes) -> None:
    with driving(client, opened(client)) as driver:
        for _ in range(4):
            driver.connection.send(text)
            assert driver.error() == ("invalid_json", None, None)
        driver.say("ping", id="still here")
        assert driver.hear() == {"type": "pong", "id": "still here"}
        for _ in range(5):
            driver.connection.send(text)
        assert closing_code(driver) == 1008


def test_messages_are_bounded(client: httpx.Client) -> None:
    with driving(client, opened(client)) as driver:
        driver.say("ping", id="x" * 300_000)
        assert closing_code(driver) == 1008


def test_what_does_not_exist_is_refused_before_the_handshake(client: httpx.Client) -> None:
    path = opened(client)
    for query, param in (
        ("mode=fast", "mode"),
        ("format=webp", "format"),
        ("modalities=sound", "modalities"),
        ("modalities=rgb,rgb", "modalities"),
        ("details=perhaps", "details"),
        ("key=secret", "key"),
    ):
        response = refusal(client, path, query, headers={"X-Request-ID": "mine"})
        assert (error_of(response)[0], error_of(response)[2]) == (422, param)
        assert response.headers["x-request-id"] == response.json()["error"]["request_id"] == "mine"
    assert error_of(refusal(client, "/v1/sessions/se_none")) == (404, "unknown_session", None)
    client.delete(path)
    assert error_of(refusal(client, path)) == (410, "session_gone", None)


def test_keys_come_in_a_header_or_a_subprotocol() -> None:
    with serving(api_keys="one,two?>") as client:
        key = {"Authorization": "Bearer two?>"}
        path = client.post("/v1/sessions", json=session_body(), headers=key).headers["location"]
        encoded = base64.urlsafe_b64encode(b"two?>").decode().rstrip("=")
        with driving(client, path, headers=key) as driver:
            assert driver.connection.subprotocol is None
        with driving(client, path, subprotocols=["worldcache", f"bearer.{encoded}"]) as driver:
            assert driver.connection.subprotocol == "worldcache"
            driver.act(0)
            driver.frames(4)
        for wrong in ("bearer.!", "bearer.", "bearer.b25l", f"bearer.{encoded}x"):
            response = refusal(client, path, subprotocols=["worldcache", wrong])
            if wrong == "bearer.b25l":  # another key: it does not see the session
                assert error_of(response) == (404, "unknown_session", None)
            else:
                assert error_of(response) == (401, "unauthorized", None)
        assert error_of(refusal(client, path)) == (401, "unauthorized", None)
        assert error_of(refusal(client, path, "key=two")) == (401, "unauthorized", None)


def test_pages_of_another_origin_may_not_connect(client: httpx.Client) -> None:
    path, port = opened(client), client.base_url.port
    with driving(client, path, headers={"Origin": f"http://127.0.0.1:{port}"}):
        pass
    for origin in (
        "http://127.0.0.1",
        "http://evil.example",
        f"http://evil.example:{port}",
        "null",
        "",
        "http://[",
    ):
        response = refusal(client, path, headers={"Origin": origin})
        assert error_of(response) == (403, "foreign_origin", None)


@pytest.mark.parametrize(
    ("origin", "host", "same"),
    [
        ("https://A.example", "a.example", True),
        ("http://a.example", "a.example:80", True),
        ("http://a.example:80", "A.example", True),
        ("https://a.example", "a.example:443", True),
        ("http://[::1]:8000", "[::1]:8000", True),
        ("http://a.example", "a.example:443", False),
        ("http://a.example:8000", "a.example:8001", False),
        ("http://b.a.example", "a.example", False),
        ("http://a.example@b.example", "a.example", False),
        ("file://a.example", "a.example", False),
        ("http://", "", False),
    ],
)
def test_an_origin_is_a_host_with_its_port(origin: str, host: str, same: bool) -> None:
    assert same_origin(origin, host) == same


def test_another_connection_takes_over_without_losing_a_step() -> None:
    gate = Gate()
    with serving(ToyWorldModel(before_evaluate=gate)) as client, ThreadPoolExecutor() as pool:
        path = opened(client)
        with driving(client, path) as old:
            gate.close()
            old.act(0)
            old.act(1)
            assert gate.reached.wait(20)
            with driving(client, path, ready=False) as new:
                assert pool.submit(closing_code, old).result(20) == 4409
                gate.open()
                assert new.hear()["session"]["frames"] == 4  # the step on its way, and not the one behind it
                new.act(0)
                assert [message["index"] for message in new.frames(4)] == [4, 5, 6, 7]


def test_a_session_that_is_closed_closes_its_socket() -> None:
    gate = Gate()
    with serving(ToyWorldModel(before_evaluate=gate)) as client:
        path = opened(client)
        with driving(client, path) as driver:
            gate.close()
            driver.act(0)
            assert gate.reached.wait(20)
            client.delete(path)
            gate.open()
            assert closing_code(driver) == 4410
        assert metric(client, "worldcache_active_sessions", model="toy") == 0


def test_a_session_that_expires_closes_its_socket_and_messages_keep_it() -> None:
    with serving(session_ttl_seconds=2) as client:
        with driving(client, opened(client)) as driver:
            for _ in range(10):
                time.sleep(0.25)
                driver.say("ping")
                assert driver.hear()["type"] == "pong"
            assert closing_code(driver) == 4410


def test_a_step_goes_on_when_the_client_leaves_and_nothing_is_left() -> None:
    gate = Gate()
    with serving(ToyWorldModel(before_evaluate=gate)) as client:
        path = opened(client)
        gate.close()
        with driving(client, path, "modalities=rgb&mode=free") as driver:
            driver.act(0)
            assert gate.reached.wait(20)
        gate.open()
        eventually(lambda: client.get(path).json()["frames"] == 4)
        assert metric(client, "worldcache_active_rollouts", model="toy") == 0
        time.sleep(0.1)
        assert client.get(path).json()["frames"] == 4  # it does not run on by itself
        with driving(client, path) as driver:
            driver.act(0)
            driver.frames(4)


def test_a_failed_step_drops_its_actions_and_the_rest_goes_on() -> None:
    def refuse(rows: Sequence[Row]) -> None:
        if any(row.condition[0] == 3 for row in rows):
            raise RuntimeError("a secret of the device")

    with serving(ToyWorldModel(before_evaluate=refuse)) as client:
        path = opened(client)
        with driving(client, path) as driver:
            for seq, action in enumerate((1, 3, 2)):
                driver.act(seq, action)
            driver.frames(4)
            failed = driver.hear()
            assert (failed["error"]["code"], failed["seq"]) == ("rollout_failed", 1)
            assert "secret" not in str(failed)
            assert driver.frames(4)[0]["seq"] == 2
        with driving(client, path, "modalities=rgb&mode=free") as driver:
            driver.act(0, 3)
            assert driver.error() == ("rollout_failed", None, 0)
            assert driver.hear() == {"type": "paused", "reason": "error"}
            driver.act(1, 1)
            driver.say("resume")
            assert driver.hear() == {"type": "resumed"}
            assert driver.frames(4)[0]["seq"] == 1


def test_a_step_that_a_full_server_refuses_is_tried_again() -> None:
    gate = Gate()
    with (
        serving(ToyWorldModel(before_evaluate=gate), max_active=1, max_queue=0) as client,
        ThreadPoolExecutor() as pool,
    ):
        path = opened(client)
        with driving(client, path) as driver:
            gate.close()
            running = pool.submit(client.post, "/v1/rollouts", json=rollout_body(num_inference_steps=1))
            assert gate.reached.wait(20)
            driver.act(0)
            busy = driver.hear()
            assert (busy["error"]["code"], busy["seq"], busy["retry_after"]) == ("queue_full", 0, 1)
            gate.open()
            assert driver.frames(4)[0]["seq"] == 0
            assert running.result(20).status_code == 200


def test_a_step_over_http_is_waited_for() -> None:
    gate = Gate()
    with serving(ToyWorldModel(before_evaluate=gate)) as client, ThreadPoolExecutor() as pool:
        path = opened(client)
        with driving(client, path) as driver:
            gate.close()
            running = pool.submit(step, client, path, LEFT)
            assert gate.reached.wait(20)
            driver.act(0)
            driver.say("ping")
            assert driver.hear()["type"] == "pong"
            gate.open()
            assert driver.frames(4)[0]["index"] == 4
            assert running.result(20)["step_id"] == 0


def test_a_full_session_says_so() -> None:
    with serving(session_max_frames=8) as client:
        with driving(client, opened(client), "modalities=rgb&mode=free") as driver:
            driver.act(0)
            driver.frames(8)
            assert driver.error() == ("session_full", None, 0)
            assert driver.hear() == {"type": "paused", "reason": "error"}


def test_token_maps_lie_on_the_models_grid() -> None:
    model = ToyWorldModel(grids={"rgb": (4, 1, 3), "depth": (4, 1, 1)})
    with serving(model) as client:
        path = opened(client, cache="balanced", guidance_scale=2.0)
        with driving(client, path, "modalities=rgb&details=true") as driver:
            driver.act(0)
            details = driver.hear()
    assert [(entry["chunk"], entry["modality"], entry["grid"]) for entry in details["token_maps"]] == [
        (0, "rgb", [4, 1, 3]),
        (0, "depth", [4, 1, 1]),
    ]
    sizes = [len(base64.b64decode(entry["classes"])) for entry in details["token_maps"]]
    assert sizes == [12, 4]
    assert set(base64.b64decode(details["token_maps"][0]["classes"])) <= {0, 1, 2}


def test_a_socket_is_no_http_request_and_sessions_are_counted_once(client: httpx.Client) -> None:
    before = metric(client, "worldcache_active_sessions", model="toy")
    path = opened(client)
    actions = metric(client, "worldcache_action_to_frame_seconds_count", model="toy")
    with driving(client, path) as driver:
        driver.act(0)
        driver.frames(4)
        assert metric(client, "worldcache_active_sessions", model="toy") == before + 1
    assert "/ws" not in client.get("/metrics").text
    assert metric(client, "worldcache_action_to_frame_seconds_count", model="toy") == actions + 1


def test_held_actions_do_not_count_as_answered() -> None:
    with serving() as client:
        with driving(client, opened(client), "modalities=rgb&mode=free") as driver:
            driver.act(0)
            driver.frames(12)
        assert metric(client, "worldcache_action_to_frame_seconds_count", model="toy") == 1


def test_a_server_that_stops_shows_the_step_on_its_way_and_says_goodbye() -> None:
    gate = Gate()
    server = serving(ToyWorldModel(before_evaluate=gate))
    client = server.__enter__()
    path = opened(client)
    gate.close()
    with driving(client, path) as driver, ThreadPoolExecutor() as pool:
        driver.act(0)
        driver.act(1)
        assert gate.reached.wait(20)
        stopping = pool.submit(server.__exit__, None, None, None)
        time.sleep(0.3)
        gate.open()
        assert [message["seq"] for message in driver.frames(4)] == [0] * 4
        assert closing_code(driver) == 1001
        stopping.result(20)
