"""Servers that are processes, with one Redis: what dies, what hangs, what is told to stop."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
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
    body, cached = slow(20), slow(20, seed=8) | {"cache": {"policy": "interval", "interval": 3}}
    with servers(redis_server, "kill:", 0.02, 0.0) as (first, second):
        one = first.wait_ready()
        other = second.wait_ready()
        assert second.process is not None and first.process is not None
        second.process.send_signal(signal.SIGSTOP)  # so that the first one takes everything
        ids = [one.post("/v1/rollouts", json=asked, headers=LATER).json()["id"] for asked in (body, cached)]
        path = f"/v1/rollouts/{ids[0]}"
        eventually(lambda: one.get(path).json()["frames_done"] >= 4)
        with pytest.raises(httpx.ReadTimeout):  # somebody waits for a rollout that dies with its server
            one.post("/v1/rollouts", json=slow(), timeout=httpx.Timeout(5, read=0.2))
        first.kill()
        second.process.send_signal(signal.SIGCONT)
        answers = [finish_soon(other, rollout_id) for rollout_id in ids]
        for answer, asked in zip(answers, (body, cached), strict=True):
            assert (answer["status"], answer["frames_done"]) == ("succeeded", 20)
            assert answer["stats"]["takeovers"] == 1
            assert [chunk["index"] for chunk in answer["stats"]["chunks"]] == list(range(5))
            assert frames_of(other, answer["id"]) == undisturbed(asked)
        assert answers[0]["stats"]["resumed_chunks"] >= 1
        assert metric(other, "worldcache_work_takeovers_total") == 2
        assert redis_server.client().xlen("kill:work") == 0


def finish_soon(client: httpx.Client, rollout_id: str) -> dict[str, Any]:
    def ended() -> dict[str, Any] | None:
        answer: dict[str, Any] = client.get(f"/v1/rollouts/{rollout_id}").json()
        return answer if answer["status"] not in ("queued", "running") else None

    answer: dict[str, Any] = eventually(ended, 40)
    return answer


def test_a_server_that_hung_writes_nothing_when_it_comes_back(redis_server: RedisServer) -> None:
    body = slow(20)
    with servers(redis_server, "hang:", 0.02, 0.0) as (first, second):
        one, other = first.wait_ready(), second.wait_ready()
        assert second.process is not None and first.process is not None
        second.process.send_signal(signal.SIGSTOP)
        rollout_id = one.post("/v1/rollouts", json=body, headers=LATER).json()["id"]
        path = f"/v1/rollouts/{rollout_id}"
        eventually(lambda: one.get(path).json()["frames_done"] >= 4)
        first.process.send_signal(signal.SIGSTOP)
        second.process.send_signal(signal.SIGCONT)
        answer = finish_soon(other, rollout_id)
        frames = frames_of(other, rollout_id)
        first.process.send_signal(signal.SIGCONT)
        eventually(lambda: metric(one, "worldcache_active_rollouts", model="toy") == 0)
        assert one.get(path).json() == answer == other.get(path).json()
        assert frames_of(one, rollout_id) == frames == undisturbed(body)
        total = [metric(client, "worldcache_rollouts_total", status="succeeded") for client in (one, other)]
        assert total == [0, 1]


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


def test_sigterm_hands_over_and_ends_in_order(redis_server: RedisServer) -> None:
    body = slow(40)
    with servers(redis_server, "term:", 0.02, 0.0, drain_seconds=2) as (first, second):
        one, other = first.wait_ready(), second.wait_ready()
        assert second.process is not None and first.process is not None
        second.process.send_signal(signal.SIGSTOP)
        rollout_id = one.post("/v1/rollouts", json=body, headers=LATER).json()["id"]
        path = f"/v1/rollouts/{rollout_id}"
        eventually(lambda: one.get(path).json()["frames_done"] >= 4)
        first.process.send_signal(signal.SIGTERM)
        ready = eventually(lambda: (r := one.get("/readyz")).status_code == 503 and r)
        assert ready.json()["checks"]["admission"] == "draining"
        refused = one.post("/v1/rollouts", json=rollout_body())
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert one.get(path).json()["status"] == "running"
        second.process.send_signal(signal.SIGCONT)
        began = time.monotonic()
        assert first.process.wait(30) in (0, -signal.SIGTERM)
        assert time.monotonic() - began < 10
        answer = finish_soon(other, rollout_id)
        assert (answer["status"], answer["frames_done"]) == ("succeeded", 40)
        assert answer["stats"]["takeovers"] == 1 and answer["stats"]["resumed_chunks"] >= 1
        assert frames_of(other, rollout_id) == undisturbed(body)


def test_a_synchronous_rollout_whose_server_died_is_told_of(redis_server: RedisServer) -> None:
    with servers(redis_server, "lost:", 0.02, 0.0) as (first, second):
        one, other = first.wait_ready(), second.wait_ready()
        with pytest.raises(httpx.TransportError):
            with httpx.Client(base_url=one.base_url, timeout=30) as waiting:
                with waiting.stream("POST", "/v1/rollouts", json=slow(stream=True)) as stream:
                    for _ in stream.iter_lines():
                        first.kill()
        (rollout,) = other.get("/v1/rollouts").json()["data"]
        answer = finish_soon(other, rollout["id"])
        assert (answer["status"], answer["error"]["code"]) == ("failed", "worker_lost")
