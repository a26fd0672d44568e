"""What goes wrong after a request was accepted, and bytes that no client means to send."""

from __future__ import annotations

import base64
import io
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from app.artifacts import MemoryArtifacts
from app.store import InMemoryStore, RolloutRecord
from tests.app.conftest import rollout_body, serving
from tests.toy import ToyWorldModel
from worldcache.core import Observation
from worldcache.errors import InvalidInput

ASYNC = {"Prefer": "respond-async"}
SLOW: dict[str, Any] = {"cache": "none", "actions": ["NOOP"] * 8, "num_inference_steps": 20}
"""With 20 ms a call, 0.8 s of work."""


def ended(client: httpx.Client, rollout_id: str) -> dict[str, Any]:
    """The rollout once it is no longer live."""
    for _ in range(500):
        rollout: dict[str, Any] = client.get(f"/v1/rollouts/{rollout_id}").json()
        if rollout["status"] not in ("queued", "running"):
            return rollout
        time.sleep(0.02)
    raise AssertionError(f"still {rollout['status']}")


def leave(client: httpx.Client, key: str) -> None:
    """Ask for a slow rollout and close the connection before it is done."""
    with httpx.Client(base_url=client.base_url, timeout=0.25) as impatient:
        with pytest.raises(httpx.ReadTimeout):
            impatient.post("/v1/rollouts", json=rollout_body(**SLOW), headers={"Idempotency-Key": key})


def picture(values: np.ndarray) -> str:
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def observed(depth: str, **more: Any) -> dict[str, Any]:
    frame = picture(np.zeros((48, 64, 3), np.uint8))
    return rollout_body(observation={"frames": [frame], "depth": [depth], **more})


@pytest.fixture(scope="module")
def slow_client() -> Any:
    with serving(ToyWorldModel(delay=0.02)) as running:
        yield running


@pytest.mark.parametrize("broken", [b" ", b"(", b"'", b"\\"])
def test_a_damaged_npy_header_is_refused(client: httpx.Client, broken: bytes) -> None:
    stream = io.BytesIO()
    np.save(stream, np.ones((4, 5), np.float32))
    damaged = stream.getvalue().replace(b"}", broken, 1)
    response = client.post("/v1/rollouts", json=observed(base64.b64encode(damaged).decode()))
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (422, "observation.depth.0")


def test_depth_that_the_scale_makes_infinite_is_refused(client: httpx.Client) -> None:
    counts = picture(np.full((48, 64), 65535, np.uint16))
    response = client.post("/v1/rollouts", json=observed(counts, depth_scale=1e38))
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (
        422,
        "invalid_depth",
        "observation.depth.0",
    )


def test_what_the_model_cannot_be_conditioned_on_is_named(client: httpx.Client) -> None:
    error = client.post("/v1/rollouts", json=rollout_body(conditioning={"prompt": "x"})).json()["error"]
    assert (error["code"], error["param"]) == ("not_supported", "conditioning.prompt")


@pytest.mark.parametrize("field", ["seed", "num_inference_steps"])
@pytest.mark.parametrize("value", [True, "7", 7.5])
def test_whole_numbers_are_whole_numbers(client: httpx.Client, field: str, value: object) -> None:
    response = client.post("/v1/rollouts", json=rollout_body(**{field: value}))
    assert (response.status_code, response.json()["error"]["param"]) == (422, field)


def test_inline_artifacts_of_asynchronous_work(client: httpx.Client) -> None:
    body = rollout_body(output={"format": "npz", "inline": True})
    rollout = ended(client, client.post("/v1/rollouts", json=body, headers=ASYNC).json()["id"])
    data = base64.b64decode(rollout["artifacts"]["inline"]["npz"]["base64"])
    assert np.load(io.BytesIO(data))["rgb"].shape == (6, 48, 64, 3)


def test_asynchronous_work_survives_a_client_that_joined_and_left(slow_client: httpx.Client) -> None:
    headers = {**ASYNC, "Idempotency-Key": "joined"}
    rollout_id = slow_client.post("/v1/rollouts", json=rollout_body(**SLOW), headers=headers).json()["id"]
    leave(slow_client, "joined")
    assert ended(slow_client, rollout_id)["status"] == "succeeded"


def test_one_of_two_clients_of_a_key_may_leave(slow_client: httpx.Client) -> None:
    with ThreadPoolExecutor(1) as pool, httpx.Client(base_url=slow_client.base_url, timeout=30) as patient:
        headers = {"Idempotency-Key": "shared"}
        first = pool.submit(patient.post, "/v1/rollouts", json=rollout_body(**SLOW), headers=headers)
        time.sleep(0.1)
        leave(slow_client, "shared")
        assert first.result(30).status_code == 200


def test_a_retry_after_a_lost_connection_succeeds(slow_client: httpx.Client) -> None:
    leave(slow_client, "lost")
    time.sleep(0.2)
    headers = {"Idempotency-Key": "lost"}
    assert slow_client.post("/v1/rollouts", json=rollout_body(**SLOW), headers=headers).status_code == 200


def test_frames_that_cannot_be_kept_fail_the_rollout(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(frames: object) -> bytes:
        raise MemoryError("a secret path")

    monkeypatch.setattr("app.follow.to_npz", full)
    with serving() as client:
        response = client.post("/v1/rollouts", json=rollout_body())
        assert (response.status_code, response.json()["error"]["code"]) == (500, "rollout_failed")
        rollout_id = client.post("/v1/rollouts", json=rollout_body(), headers=ASYNC).json()["id"]
        rollout = ended(client, rollout_id)
        assert rollout["status"] == "failed" and "secret" not in str(rollout)
        assert 'status="failed"} 2.0' in client.get("/metrics").text
        assert client.delete(f"/v1/rollouts/{rollout_id}").json()["deleted"]


class PickyWorldModel(ToyWorldModel):
    """Refuses every observation, as a model does that can only tell when it sees it."""

    def begin(self, observation: Observation, conditioning: Any = None) -> Any:
        raise InvalidInput("the frames do not fit", param="observation.frames")


def test_what_the_model_refuses_is_the_clients_error() -> None:
    with serving(PickyWorldModel()) as client:
        response = client.post("/v1/rollouts", json=rollout_body())
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (422, "observation.frames")


def test_one_that_cannot_be_written_down_fails_and_lets_its_model_go(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(ToyWorldModel(delay=0.01)) as client:
        saved = InMemoryStore.save

        async def fail(self: InMemoryStore, record: RolloutRecord, *more: object) -> None:
            if record.status == "running":
                raise OSError("a stale file handle")
            await saved(self, record)

        monkeypatch.setattr(InMemoryStore, "save", fail)
        answer = client.post("/v1/rollouts", json=rollout_body())
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "rollout_failed")
        assert "stale" not in answer.text and "stale" in caplog.text
        with client.stream("POST", "/v1/rollouts", json=rollout_body(stream=True)) as stream:
            assert "event: error" in "".join(stream.iter_text())
        assert client.get("/v1/models/toy").json()["rollouts"] == 0


def test_artifacts_that_cannot_be_removed_are_nobody_elses_trouble(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(self: MemoryArtifacts, keys: object) -> None:
        raise OSError("a stale file handle")

    monkeypatch.setattr(MemoryArtifacts, "remove", fail)
    with serving(store_max_rollouts=1) as client:
        for _ in range(3):
            assert client.post("/v1/rollouts", json=rollout_body()).json()["status"] == "succeeded"
    assert "cannot be removed" in caplog.text


def test_a_stream_that_cannot_go_on_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> bytes:
        raise OverflowError("a secret")

    with serving() as client:
        monkeypatch.setattr("app.streaming.pictures_json", fail)
        with client.stream("POST", "/v1/rollouts", json=rollout_body(stream=True)) as stream:
            text = "".join(stream.iter_text())
        assert "event: error" in text and "internal_error" in text and "secret" not in text
