"""``WS /v1/sessions/{id}/ws`` against a running server."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from websockets.exceptions import InvalidStatus

from tests.app.conftest import serving
from tests.app.sockets import driving
from tests.app.test_sessions import Gate, opened, pixels, step
from tests.toy import ToyWorldModel


def image(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def refusal(client: httpx.Client, path: str, query: str = "", **options: Any) -> httpx.Response:
    """The response to a connection that is refused."""
    with pytest.raises(InvalidStatus) as caught, driving(client, path, query, **options):
        pass
    response = caught.value.response
    return httpx.Response(response.status_code, headers=dict(response.headers), content=response.body)


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
