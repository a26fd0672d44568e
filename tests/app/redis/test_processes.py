"""Servers that are processes, with one Redis: what dies, what hangs, what is told to stop."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.app.conftest import rollout_body, serving
from tests.app.redis.server import RedisServer, free_port
from tests.app.redis.test_service import LATER, eventually, frames_of, slow
from tests.app.test_rollouts import metric

pytestmark = [pytest.mark.server, pytest.mark.slow]

SESSION = {"model": "toy", "observation": {"start": "centre"}, "num_inference_steps": 5}
ROOT = Path(__file__).parents[3]

SERVE = """
import os, sys
from app.main import create_app
from app.serving import serve
from app.settings import Settings
from tests.toy import ToyWorldModel

def evaluate(rows):
    if any(row.condition[0] == 3 for row in rows):
        os._exit(9)

model = ToyWorldModel(delay=float(sys.argv[2]), before_evaluate=evaluate)
app = create_app(Settings(), models_by_name={"toy": model})
serve(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", timeout_graceful_shutdown=5)
"""


@dataclass
class Server:
    """A server process; it can be started again on its port."""

    redis: RedisServer
    prefix: str
    port: int
    delay: float
    settings: dict[str, Any]
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        chosen = {
            "redis_url": self.redis.url,
            "redis_prefix": self.prefix,
            "lease_seconds": 2,
            **self.settings,
        }
        variables = {f"WORLDCACHE_{name.upper()}": str(value) for name, value in chosen.items()}
        command = [sys.executable, "-c", SERVE, str(self.port), str(self.delay)]
        self.process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **variables})

    def wait_ready(self) -> httpx.Client:
        client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=30)

        def ready() -> bool:
            try:
                return client.get("/readyz").status_code == 200
            except httpx.TransportError:
                return False

        eventually(ready, 60)
        return client

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@contextlib.contextmanager
def servers(redis: RedisServer, prefix: str, *delays: float, **settings: Any) -> Iterator[list[Server]]:
    all_of_them = [Server(redis, prefix, free_port(), delay, settings) for delay in delays]
    try:
        for server in all_of_them:
            server.start()
        yield all_of_them
    finally:
        for server in all_of_them:
            server.kill()


def undisturbed(body: dict[str, Any]) -> bytes:
    with serving() as alone:
        return frames_of(alone, alone.post("/v1/rollouts", json=body).json()["id"])


def test_a_killed_server_loses_nothing_that_was_accepted(redis_server: RedisServer) -> None:
    body, cached = slow(48), slow(48, seed=8) | {"cache": {"policy": "interval", "interval": 3}}
    with servers(redis_server, "kill:", 0.02, 0.0, session_snapshot_seconds=0.2) as (first, second):
        one = first.wait_ready()
        other = second.wait_ready()
        assert second.process is not None and first.process is not None
        second.process.send_signal(signal.SIGSTOP)  # so that the first one takes everything
        ids = [one.post("/v1/rollouts", json=asked, headers=LATER).json()["id"] for asked in (body, cached)]
        path = f"/v1/rollouts/{ids[0]}"
        eventually(lambda: one.get(path).json()["frames_done"] >= 4)
        session = one.post("/v1/sessions", json=SESSION).json()["id"]
        step = {"actions": ["MOVE_LEFT"], "step_id": 0}
        frames = one.post(f"/v1/sessions/{session}/step", json=step).json()["frames"]
        key = f"kill:session:{session}"
        eventually(lambda: b'"frames":4' in (redis_server.client().hget(key, "data") or b""))
        streamed = slow(stream=True, metadata={"client": "waits"})
        with pytest.raises(httpx.TransportError):  # this one ends with its server
            with one.stream("POST", "/v1/rollouts", json=streamed) as stream:
                for _ in stream.iter_lines():
                    first.kill()
        second.process.send_signal(signal.SIGCONT)
        answers = [finish_soon(other, rollout_id) for rollout_id in ids]
        for answer, asked in zip(answers, (body, cached), strict=True):
            assert (answer["status"], answer["frames_done"]) == ("succeeded", 48)
            assert answer["stats"]["takeovers"] == 1
            assert [chunk["index"] for chunk in answer["stats"]["chunks"]] == list(range(12))
            assert frames_of(other, answer["id"]) == undisturbed(asked)
        assert answers[0]["stats"]["resumed_chunks"] >= 1
        assert metric(other, "worldcache_work_takeovers_total") == 2
        assert redis_server.client().xlen("kill:work") == 0
        (waited,) = [one for one in other.get("/v1/rollouts").json()["data"] if one["metadata"]]
        ended = finish_soon(other, waited["id"])
        assert (ended["status"], ended["error"]["code"]) == ("failed", "worker_lost")
        found = eventually(lambda: (r := other.get(f"/v1/sessions/{session}")).status_code == 200 and r)
        assert found.json()["committed_step_id"] == 0 and len(frames) == 4
        more = other.post(f"/v1/sessions/{session}/step", json={**step, "step_id": 1})
        assert [frame["index"] for frame in more.json()["frames"]] == [4, 5, 6, 7]


def finish_soon(client: httpx.Client, rollout_id: str) -> dict[str, Any]:
    def ended() -> dict[str, Any] | None:
        answer: dict[str, Any] = client.get(f"/v1/rollouts/{rollout_id}").json()
        return answer if answer["status"] not in ("queued", "running") else None

    answer: dict[str, Any] = eventually(ended, 40)
    return answer


def test_a_server_that_hangs_and_one_that_is_told_to_stop(redis_server: RedisServer) -> None:
    body = slow(20)
    frames = undisturbed(body)
    with servers(redis_server, "stop:", 0.02, 0.0, drain_seconds=0.5) as (first, second):
        one, other = first.wait_ready(), second.wait_ready()
        writes_nothing_when_it_comes_back(first, second, one, other, body, frames)
        hands_over_and_ends_in_order(first, second, one, other, body, frames)


def begun(one: httpx.Client, second: Server, body: dict[str, Any]) -> str:
    """A rollout that the first server has begun, because the second one stands still."""
    assert second.process is not None
    second.process.send_signal(signal.SIGSTOP)
    rollout_id: str = one.post("/v1/rollouts", json=body, headers=LATER).json()["id"]
    eventually(lambda: one.get(f"/v1/rollouts/{rollout_id}").json()["frames_done"] >= 4)
    return rollout_id


def writes_nothing_when_it_comes_back(
    first: Server, second: Server, one: httpx.Client, other: httpx.Client, body: dict[str, Any], frames: bytes
) -> None:
    assert second.process is not None and first.process is not None
    rollout_id = begun(one, second, body)
    path = f"/v1/rollouts/{rollout_id}"
    first.process.send_signal(signal.SIGSTOP)
    second.process.send_signal(signal.SIGCONT)
    answer = finish_soon(other, rollout_id)
    assert frames_of(other, rollout_id) == frames
    first.process.send_signal(signal.SIGCONT)
    eventually(lambda: metric(one, "worldcache_active_rollouts", model="toy") == 0)
    assert one.get(path).json() == answer == other.get(path).json()
    assert frames_of(one, rollout_id) == frames
    total = [metric(client, "worldcache_rollouts_total", status="succeeded") for client in (one, other)]
    assert total == [0, 1]


def hands_over_and_ends_in_order(
    first: Server, second: Server, one: httpx.Client, other: httpx.Client, body: dict[str, Any], frames: bytes
) -> None:
    assert second.process is not None and first.process is not None
    rollout_id = begun(one, second, body)
    path = f"/v1/rollouts/{rollout_id}"
    first.process.send_signal(signal.SIGTERM)
    ready = eventually(lambda: (r := one.get("/readyz")).status_code == 503 and r)
    assert ready.json()["checks"]["admission"] == "draining"
    refused = one.post("/v1/rollouts", json=rollout_body())
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
    sought = eventually(lambda: (r := one.get("/v1/sessions/se_elsewhere")).status_code == 503 and r)
    assert sought.json()["error"]["code"] == "draining"  # it may be one that another server brings back
    assert one.get(path).json()["status"] == "running"
    second.process.send_signal(signal.SIGCONT)
    assert first.process.wait(30) == 0
    answer = finish_soon(other, rollout_id)
    assert (answer["status"], answer["frames_done"]) == ("succeeded", 20)
    assert answer["stats"]["takeovers"] == 1 and answer["stats"]["resumed_chunks"] >= 1
    assert frames_of(other, rollout_id) == frames


def test_a_rollout_that_ends_processes_is_parked_and_its_neighbours_are_not(
    redis_server: RedisServer,
) -> None:
    with servers(redis_server, "poison:", 0.01, work_tries=3) as (server,):
        client = server.wait_ready()
        innocent = client.post("/v1/rollouts", json=slow(40), headers=LATER).json()["id"]
        poison = rollout_body(actions=["ATTACK"], cache="none")
        poisoned = client.post("/v1/rollouts", json=poison, headers=LATER).json()["id"]
        assert server.process is not None
        deaths = 0
        for _ in range(3):
            assert server.process.wait(60) == 9
            deaths += 1
            server.start()
        client = server.wait_ready()
        parked = finish_soon(client, poisoned)
        assert (parked["status"], parked["error"]["code"]) == ("failed", "rollout_parked")
        assert finish_soon(client, innocent)["status"] == "succeeded"
        assert (deaths, server.process.poll()) == (3, None)
        assert metric(client, "worldcache_work_parked_total") == 1
        redis = redis_server.client()
        ((_, entry),) = redis.xrange("poison:parked")
        assert entry[b"id"].decode() == poisoned and b"ATTACK" in entry[b"order"]
        assert redis.xlen("poison:work") == 0
