"""Replicas as they stand behind Ray Serve, without Ray: who answers what."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from app.serving import make_server
from app.settings import Settings
from deploy.ray.replica import create_replica
from deploy.ray.scaling import WORK, by_ongoing_work
from tests.app.conftest import rollout_body
from tests.app.redis.conftest import redis_server
from tests.app.redis.server import RedisServer
from tests.app.redis.test_service import slow
from tests.app.test_rollouts import metric
from tests.deploy.cluster import eventually
from worldcache.errors import InvalidInput

__all__ = ["redis_server"]

PREFIXES = iter(f"ray{number}:" for number in range(1000))
TWO = ("one=tests.deploy.world.SlowWorld", "two=tests.deploy.world.SlowWorld")
SESSION = {"model": "one", "observation": {"start": "centre"}, "num_inference_steps": 5}


@contextmanager
def replica(server: RedisServer, prefix: str, **settings: Any) -> Iterator[httpx.Client]:
    chosen = {
        "redis_url": server.url,
        "redis_prefix": prefix,
        "models": TWO,
        "preload": "none",
        "lease_seconds": 3,
        "drain_seconds": 1,
    }
    app = create_replica(Settings(**{**chosen, **settings}), "127.0.0.1")
    running = make_server(app, host="127.0.0.1", port=0, log_level="warning")
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        assert thread.is_alive()
        time.sleep(0.01)
    port = running.servers[0].sockets[0].getsockname()[1]
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        try:
            yield client
        finally:
            running.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


@contextmanager
def two_replicas(server: RedisServer, **settings: Any) -> Iterator[tuple[httpx.Client, httpx.Client]]:
    prefix = next(PREFIXES)
    with ExitStack() as stack:
        first, second = (stack.enter_context(replica(server, prefix, **settings)) for _ in range(2))
        yield first, second


def load(client: httpx.Client, model: str) -> None:
    client.post(f"/v1/models/{model}/load")
    eventually(lambda: status_of(client, model) == "warm")


def load_at(place: httpx.Client, model: str, *, known_to: httpx.Client) -> None:
    """Load a model in one replica and wait until another one, which has it not, asks there for it."""
    load(place, model)
    eventually(lambda: known_to.get(f"/v1/models/{model}").json()["status"] == "warm")
    assert status_of(known_to, model) == "cold"


def status_of(client: httpx.Client, model: str) -> str:
    """In the client's own replica."""
    return {one["id"]: one["status"] for one in client.get("/v1/models").json()["data"]}[model]


def ended(client: httpx.Client, model: str) -> float:
    return metric(client, "worldcache_rollouts_total", model=model, policy="worldcache", status="succeeded")


def test_a_request_goes_where_its_model_is(redis_server: RedisServer) -> None:
    with two_replicas(redis_server) as (first, second):
        load_at(first, "one", known_to=second)
        load_at(second, "two", known_to=first)
        for client in (first, second):
            for model in ("one", "two"):
                answer = client.post("/v1/rollouts", json=rollout_body(model=model))
                assert answer.status_code == 200, answer.text
                place = answer.headers["location"]
                assert client.get(place).json()["model"] == model
                assert client.get(f"/v1/models/{model}").json()["status"] == "warm"
        assert [ended(first, "one"), ended(first, "two")] == [2, 0]
        assert [ended(second, "one"), ended(second, "two")] == [0, 2]
        assert [status_of(first, "two"), status_of(second, "one")] == ["cold", "cold"]


def test_a_session_is_found_wherever_it_was_opened(redis_server: RedisServer) -> None:
    with two_replicas(redis_server) as (first, second):
        load_at(second, "one", known_to=first)
        opened = first.post("/v1/sessions", json=SESSION).json()["id"]
        assert metric(second, "worldcache_active_sessions", model="one") == 1
        forked = first.post(f"/v1/sessions/{opened}/fork").json()["id"]
        assert metric(second, "worldcache_active_sessions", model="one") == 2
        for client in (first, second):
            for session_id in (opened, forked):
                assert client.get(f"/v1/sessions/{session_id}").json()["id"] == session_id


def test_a_full_replica_passes_on(redis_server: RedisServer) -> None:
    limits = {"models": TWO[0], "preload": "all", "max_active": 1, "max_queue": 0}
    with two_replicas(redis_server, **limits) as (first, second), ExitStack() as streams:
        body = {**slow(100, model="one"), "stream": True}

        def accepted() -> bool:
            """By the first, which passes on what it has no room for once it knows of the second."""
            stream = streams.enter_context(first.stream("POST", "/v1/rollouts", json=body))
            return stream.status_code == 200

        assert accepted()
        eventually(accepted)
        refused = second.post("/v1/rollouts", json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "queue_full")
        assert [metric(one, "worldcache_active_rollouts", model="one") for one in (first, second)] == [1, 1]


def test_sessions_belong_to_their_keys(redis_server: RedisServer) -> None:
    with two_replicas(redis_server, api_keys="mine,yours") as (first, second):
        mine, yours = ({"Authorization": f"Bearer {key}"} for key in ("mine", "yours"))
        session_id = first.post("/v1/sessions", json=SESSION, headers=mine).json()["id"]
        path = f"/v1/sessions/{session_id}"
        for client in (first, second):
            assert client.get(path, headers=mine).status_code == 200
            assert client.get(path, headers=yours).status_code == 404
            assert client.get(path).status_code == 401
            assert len(client.get("/v1/sessions", headers=mine).json()["data"]) == 1
            assert client.get("/v1/sessions", headers=yours).json()["data"] == []
            bad = client.get("/v1/sessions", params={"limit": 0}, headers=mine)
            assert bad.status_code == 422


STEP = {"actions": ["NOOP"]}


def test_a_session_is_brought_back_when_its_replica_ends(redis_server: RedisServer) -> None:
    prefix = next(PREFIXES)
    with replica(redis_server, prefix) as first, replica(redis_server, prefix) as third:
        with replica(redis_server, prefix) as second:
            session_id = second.post("/v1/sessions", json=SESSION).json()["id"]
            path = f"/v1/sessions/{session_id}"
            assert first.post(f"{path}/step", json=STEP).status_code == 200
        for client in (first, third):  # the second of them is sent to the first
            assert client.get(path).json()["frames"] == 4
        together = {"steps": [{"session_id": session_id, **STEP}]}
        (answer,) = third.post("/v1/sessions/step", json=together).json()["data"]
        assert answer["step_id"] == 1
        assert metric(first, "worldcache_active_sessions", model="one") == 1
        assert metric(third, "worldcache_active_sessions", model="one") == 0


def test_a_session_that_cannot_be_written_down_is_gone(redis_server: RedisServer) -> None:
    prefix = next(PREFIXES)
    chosen = {"models": "one=tests.deploy.world.SecretiveWorld"}
    with replica(redis_server, prefix, **chosen) as first:
        with replica(redis_server, prefix, **chosen) as second:
            session_id = second.post("/v1/sessions", json=SESSION).json()["id"]
            assert first.get(f"/v1/sessions/{session_id}").status_code == 200
        answer = first.get(f"/v1/sessions/{session_id}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (410, "session_gone")
        together = {"steps": [{"session_id": session_id, **STEP}]}
        (failed,) = first.post("/v1/sessions/step", json=together).json()["data"]
        assert (failed["error"]["code"], failed["error"]["param"]) == ("session_gone", "steps.0.session_id")


def test_a_request_counts_once(redis_server: RedisServer, tmp_path: Path) -> None:
    digest = hashlib.sha256(b"mine").hexdigest()
    keys = tmp_path / "keys.toml"
    keys.write_text(f'[[keys]]\nname = "me"\nsha256 = "{digest}"\nrate = 1\nburst = 3\n')
    with two_replicas(redis_server, api_keys_file=str(keys)) as (first, second):
        headers = {"Authorization": "Bearer mine"}
        session_id = first.post("/v1/sessions", json=SESSION, headers=headers).json()["id"]
        path = f"/v1/sessions/{session_id}"
        codes = [second.get(path, headers=headers).status_code for _ in range(3)]
        assert codes == [200, 200, 429]


def test_clients_of_a_replica_cannot_pose_as_one(redis_server: RedisServer) -> None:
    with two_replicas(redis_server) as (first, second):
        session_id = first.post("/v1/sessions", json=SESSION).json()["id"]
        forged = {"X-Worldcache-Peer": "guessed", "X-Worldcache-Client": "192.0.2.1"}
        assert second.get(f"/v1/sessions/{session_id}", headers=forged).status_code == 200


def test_replicas_need_redis_and_keys(redis_server: RedisServer) -> None:
    with pytest.raises(InvalidInput, match="WORLDCACHE_REDIS_URL"):
        create_replica(Settings(), "127.0.0.1")
    with pytest.raises(InvalidInput, match="WORLDCACHE_API_KEYS"):
        create_replica(Settings(redis_url=redis_server.url), "192.0.2.1")


@pytest.mark.parametrize(
    ("requests", "work", "expected"), [(0.0, {}, 0), (6.0, {}, 3), (2.0, {"a": 8.0, "b": 7.0}, 5)]
)
def test_accepted_work_asks_for_replicas(requests: float, work: dict[str, float], expected: float) -> None:
    config = SimpleNamespace(get_target_ongoing_requests=lambda: 2)
    context = SimpleNamespace(total_num_requests=requests, aggregated_metrics={WORK: work}, config=config)
    assert by_ongoing_work(context) == (expected, {})
