"""Servers in this process that share a Redis: what clients of either see."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import pytest

from tests.app.conftest import rollout_body, serving
from tests.app.redis.server import RedisServer
from tests.app.test_rollouts import finish, metric
from tests.toy import ToyWorldModel

LATER = {"Prefer": "respond-async"}
PREFIXES = iter(f"test{number}:" for number in range(1000))


@contextmanager
def replica(
    server: RedisServer, prefix: str, model: ToyWorldModel | None = None, **settings: Any
) -> Iterator[httpx.Client]:
    chosen = {"lease_seconds": 1.5, "drain_seconds": 5, **settings}
    with serving(model, redis_url=server.url, redis_prefix=prefix, **chosen) as client:
        yield client


@pytest.fixture
def prefix() -> str:
    return next(PREFIXES)


def eventually(check: Callable[[], Any], seconds: float = 15.0) -> Any:
    """What ``check`` returns as soon as it is true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := check():
            return found
        time.sleep(0.02)
    raise AssertionError("it did not happen in time")


def frames_of(client: httpx.Client, rollout_id: str) -> bytes:
    arrays = np.load(io.BytesIO(client.get(f"/v1/rollouts/{rollout_id}/frames.npz").content))
    return arrays["rgb"].tobytes() + arrays["depth"].tobytes()


def rollout_ids(client: httpx.Client) -> list[str]:
    return [one["id"] for one in client.get("/v1/rollouts").json()["data"]]


def slow(actions: int = 200, **changes: Any) -> dict[str, Any]:
    return rollout_body(actions=["NOOP"] * actions, num_inference_steps=50, cache="none", **changes)


@pytest.mark.parametrize("headers", [{}, LATER], ids=["at once", "later"])
def test_both_servers_tell_the_same_of_a_rollout(
    redis_server: RedisServer, prefix: str, headers: dict[str, str]
) -> None:
    body = rollout_body(metadata={"run": "1"}, cache={"policy": "worldcache"})
    with serving() as alone:
        expected = alone.post("/v1/rollouts", json=body).json()
        frames = frames_of(alone, expected["id"])
    with replica(redis_server, prefix) as one, replica(redis_server, prefix) as other:
        posted = one.post("/v1/rollouts", json=body, headers=headers)
        answer = finish(one, posted.json()["id"])
        assert answer == other.get(f"/v1/rollouts/{answer['id']}").json()
        assert answer["status"] == "succeeded"
        for name in ("seed", "frames", "frames_done", "metadata"):
            assert answer[name] == expected[name]
        for name in ("policy", "steps_full", "chunks", "takeovers"):
            assert answer["stats"][name] == expected["stats"][name]
        assert frames_of(other, answer["id"]) == frames_of(one, answer["id"]) == frames
        assert other.get(answer["artifacts"]["video"]["rgb"]).content[4:8] == b"ftyp"
        assert rollout_ids(other) == [answer["id"]]
        assert other.delete(f"/v1/rollouts/{answer['id']}").json()["deleted"] is True
        assert one.get(f"/v1/rollouts/{answer['id']}").status_code == 404
    left = {key.decode() for key in redis_server.client().keys(f"{prefix}*")}
    assert not [key for key in left if answer["id"] in key and "removed:" not in key]
    assert not [key for key in left if ":blob:" in key or "clients" in key]


def test_every_preset_can_be_asked_for_asynchronously(redis_server: RedisServer, prefix: str) -> None:
    """Of the built-in model: what is written down is the policy that the preset stands for."""
    with serving(models=["doom"], redis_url=redis_server.url, redis_prefix=prefix) as client:
        presets = client.get("/v1/models/doom").json()["presets"]
        asked = [{}, *({"cache": name} for name in ("auto", *presets))]
        bodies = [rollout_body(model="doom", num_inference_steps=4, **cache) for cache in asked]
        posted = [client.post("/v1/rollouts", json=body, headers=LATER).json() for body in bodies]
        for body, answer in zip(bodies, posted, strict=True):
            ended = finish(client, answer["id"])
            assert ended["status"] == "succeeded", ended["error"]
            at_once = client.post("/v1/rollouts", json=body).json()
            for name in ("policy", "steps_full", "steps_total"):
                assert ended["stats"][name] == at_once["stats"][name]


def test_events_come_from_the_server_that_does_not_run_it(redis_server: RedisServer, prefix: str) -> None:
    with (
        replica(redis_server, prefix, ToyWorldModel(delay=0.01)) as one,
        replica(redis_server, prefix, max_active=1) as other,
    ):
        posted = one.post("/v1/rollouts", json=slow(12), timeout=httpx.Timeout(5, read=60))
        running = one.post("/v1/rollouts", json=slow(12), headers=LATER).json()["id"]
        assert posted.status_code == 200
        names: list[str] = []
        ids: list[int] = []
        for server in (one, other):
            with server.stream("GET", f"/v1/rollouts/{running}/events") as stream:
                for line in stream.iter_lines():
                    field, _, value = line.partition(": ")
                    names += [value] if field == "event" else []
                    ids += [int(value)] if field == "id" else []
        assert names[: len(names) // 2] == names[len(names) // 2 :]
        assert names[:2] + names[-1:] == ["status", "status", "done"]
        assert names.count("frame") == 24 and ids[: len(ids) // 2] == list(range(len(ids) // 2))
        rest = other.get(f"/v1/rollouts/{running}/events", headers={"Last-Event-ID": str(ids[-1] - 1)})
        assert rest.text.count("event: ") == 1 and "event: done" in rest.text


@pytest.mark.parametrize("headers", [{}, LATER], ids=["at once", "later"])
def test_a_rollout_is_cancelled_from_the_other_server(
    redis_server: RedisServer, prefix: str, headers: dict[str, str]
) -> None:
    model = ToyWorldModel(delay=0.02)
    with replica(redis_server, prefix, model) as one:
        answers: list[httpx.Response] = []
        post = threading.Thread(
            target=lambda: answers.append(one.post("/v1/rollouts", json=slow(), headers=headers))
        )
        post.start()
        eventually(lambda: len(model.batches) > 3)
        with replica(redis_server, prefix) as other:
            (rollout_id,) = rollout_ids(other)
            assert other.delete(f"/v1/rollouts/{rollout_id}").json()["status"] == "cancelled"
            asked = time.monotonic()
            eventually(lambda: metric(one, "worldcache_active_rollouts", model="toy") == 0)
            assert time.monotonic() - asked < 5
            post.join(10)
            expected = (202, "queued") if headers else (409, "rollout_cancelled")
            shown = answers[0].json()
            assert (answers[0].status_code, shown.get("status") or shown["error"]["code"]) == expected
            calls = len(model.batches)
            time.sleep(0.2)
            assert len(model.batches) == calls
            for server in (one, other):
                assert server.get(f"/v1/rollouts/{rollout_id}").json()["status"] == "cancelled"
            assert redis_server.client().xlen(f"{prefix}work") == 0


def test_idempotency_keys_hold_on_both_servers(redis_server: RedisServer, prefix: str) -> None:
    with replica(redis_server, prefix) as one, replica(redis_server, prefix) as other:
        headers = {"Idempotency-Key": "once"}
        first = one.post("/v1/rollouts", json=rollout_body(), headers=headers).json()
        assert other.post("/v1/rollouts", json=rollout_body(), headers=headers).json()["id"] == first["id"]
        changed = other.post("/v1/rollouts", json=rollout_body(seed=9), headers=headers)
        assert changed.json()["error"]["code"] == "idempotency_key_reused"
        both = {"Idempotency-Key": "later", **LATER}
        ids = {
            server.post("/v1/rollouts", json=rollout_body(), headers=both).json()["id"]
            for server in (one, other)
        }
        assert len(ids) == 1
        finish(one, ids.pop())


def test_a_synchronous_rollout_that_is_asked_for_again_asynchronously_survives(
    redis_server: RedisServer, prefix: str
) -> None:
    body, once = slow(24, seed=None), {"Idempotency-Key": "twin"}
    answers: list[httpx.Response] = []
    with replica(redis_server, prefix, ToyWorldModel(delay=0.01)) as other:
        with replica(redis_server, prefix, ToyWorldModel(delay=0.02), drain_seconds=0) as one:
            post = threading.Thread(
                target=lambda: answers.append(one.post("/v1/rollouts", json=body, headers=once))
            )
            post.start()
            eventually(lambda: rollout_ids(one))
            eventually(lambda: one.get("/v1/rollouts").json()["data"][0]["frames_done"] >= 4)
            again = other.post("/v1/rollouts", json=body, headers={**once, **LATER})
            assert again.status_code == 202
            assert [again.json()["id"]] == rollout_ids(other)
            assert redis_server.client().xlen(f"{prefix}work") == 1
            post.join(30)
        answer = finish(other, again.json()["id"])
        assert (answer["status"], answer["frames_done"]) == ("succeeded", 24)
        assert [chunk["index"] for chunk in answer["stats"]["chunks"]] == list(range(6))
        assert answers[0].json() == answer
        body["seed"] = answer["seed"]
        alone = other.post("/v1/rollouts", json=body).json()
        assert frames_of(other, alone["id"]) == frames_of(other, answer["id"])


def test_the_line_is_bounded(redis_server: RedisServer, prefix: str) -> None:
    model = ToyWorldModel(delay=0.02)
    limits = {"max_active": 1, "work_max_queue": 3, "max_per_client": 2}
    with replica(redis_server, prefix, model, **limits) as client:
        ids = [client.post("/v1/rollouts", json=slow(), headers=LATER).json()["id"] for _ in range(2)]
        refused = client.post("/v1/rollouts", json=slow(), headers=LATER)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_rollouts")
        assert int(refused.headers["retry-after"]) >= 1
        for rollout_id in ids:
            assert client.delete(f"/v1/rollouts/{rollout_id}").json()["status"] == "cancelled"
        accepted = client.post("/v1/rollouts", json=rollout_body(), headers=LATER)
        assert finish(client, accepted.json()["id"])["status"] == "succeeded"
        assert metric(client, "worldcache_rejected_total", reason="too_many_rollouts") == 1
    with replica(redis_server, prefix, model, **{**limits, "max_per_client": 9}) as client:
        codes = [client.post("/v1/rollouts", json=slow(), headers=LATER).status_code for _ in range(4)]
        assert codes == [202, 202, 202, 503]
        for rollout_id in rollout_ids(client)[:3]:
            client.delete(f"/v1/rollouts/{rollout_id}")


def test_a_server_that_stops_hands_over_what_it_runs(redis_server: RedisServer, prefix: str) -> None:
    body = slow(24)
    with serving() as alone:
        frames = frames_of(alone, alone.post("/v1/rollouts", json=body).json()["id"])
    with replica(redis_server, prefix, ToyWorldModel(delay=0.01), drain_seconds=0.3) as one:
        rollout_id = one.post("/v1/rollouts", json=body, headers=LATER).json()["id"]
        eventually(lambda: one.get(f"/v1/rollouts/{rollout_id}").json()["frames_done"] >= 8)
    with replica(redis_server, prefix) as other:
        answer = finish(other, rollout_id)
        assert (answer["status"], answer["frames_done"]) == ("succeeded", 24)
        assert answer["stats"]["takeovers"] == 1 and answer["stats"]["resumed_chunks"] >= 2
        assert [chunk["index"] for chunk in answer["stats"]["chunks"]] == list(range(6))
        assert answer["stats"]["steps_total"] == 6 * 50
        assert frames_of(other, rollout_id) == frames
        assert metric(other, "worldcache_work_takeovers_total") == 1
        calls = metric(other, "worldcache_backbone_seconds_count", model="toy")
        assert calls <= (6 - answer["stats"]["resumed_chunks"]) * 50


def test_a_model_that_cannot_write_its_state_down_begins_again(
    redis_server: RedisServer, prefix: str
) -> None:
    class Secretive(ToyWorldModel):
        def export_context(self, context: Any) -> Any:
            raise self._keeps_no_contexts()

    body = slow(12)
    with serving() as alone:
        frames = frames_of(alone, alone.post("/v1/rollouts", json=body).json()["id"])
    with replica(redis_server, prefix, Secretive(delay=0.01), drain_seconds=0.1) as one:
        rollout_id = one.post("/v1/rollouts", json=body, headers=LATER).json()["id"]
        eventually(lambda: one.get(f"/v1/rollouts/{rollout_id}").json()["frames_done"] >= 4)
    with replica(redis_server, prefix, Secretive()) as other:
        answer = finish(other, rollout_id)
        assert answer["stats"]["resumed_chunks"] == 0 and answer["stats"]["takeovers"] == 1
        assert [chunk["index"] for chunk in answer["stats"]["chunks"]] == [0, 1, 2]
        assert frames_of(other, rollout_id) == frames


def test_what_cannot_be_run_any_more_fails_with_the_reason(redis_server: RedisServer, prefix: str) -> None:
    with replica(redis_server, prefix, ToyWorldModel(delay=0.01), drain_seconds=0) as one:
        rollout_id = one.post("/v1/rollouts", json=slow(40), headers=LATER).json()["id"]
    with replica(redis_server, prefix, max_frames=10) as other:
        answer = finish(other, rollout_id)
        assert (answer["status"], answer["error"]["code"]) == ("failed", "too_many_frames")
        assert redis_server.client().xlen(f"{prefix}work") == 0


def test_a_deadline_goes_on_after_a_takeover(redis_server: RedisServer, prefix: str) -> None:
    body = slow(80, deadline_ms=3000)
    with replica(redis_server, prefix, ToyWorldModel(delay=0.01), drain_seconds=0) as one:
        rollout_id = one.post("/v1/rollouts", json=body, headers=LATER).json()["id"]
        eventually(lambda: one.get(f"/v1/rollouts/{rollout_id}").json()["frames_done"] >= 4)
    with replica(redis_server, prefix, ToyWorldModel(delay=0.05)) as other:
        answer = finish(other, rollout_id)
        assert answer["error"]["code"] == "deadline_exceeded"
        assert answer["stats"]["deadline"]["met"] is False


def test_records_name_no_inside_and_hold_no_key(redis_server: RedisServer, prefix: str) -> None:
    headers = {"Authorization": "Bearer secret-key"}
    with serving(
        redis_url=redis_server.url, redis_prefix=prefix, api_keys=("secret-key",), wait_until_ready=True
    ) as client:
        client.headers.update(headers)
        client.post("/v1/rollouts", json=rollout_body())
    redis = redis_server.client()
    for key in redis.keys(f"{prefix}rollout:*"):
        assert b"secret-key" not in b"".join(redis.hgetall(key).values())
        assert json.loads(redis.hget(key, "record"))["version"] == 1
