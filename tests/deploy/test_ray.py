"""Two replicas behind Ray Serve, as processes: what clients see, also when one of them is killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import import_module
from typing import Any

import httpx
import pytest
import yaml
from websockets.exceptions import InvalidStatus

from app.main import ENGINE_STOP_SECONDS
from app.settings import Settings
from tests.app.conftest import rollout_body, serving
from tests.app.redis.server import RedisServer
from tests.app.redis.test_service import LATER, frames_of, slow
from tests.app.sockets import driving
from tests.app.test_rollouts import metric
from tests.deploy.cluster import ROOT, Cluster, eventually, pid_of

pytest.importorskip("ray", reason="the extra ray is not installed")

pytestmark = [pytest.mark.server, pytest.mark.slow]

SESSION = {"model": "toy", "observation": {"start": "centre"}, "num_inference_steps": 5, "seed": 1}
STEP = {"actions": ["MOVE_LEFT"] * 4}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    redis = RedisServer(tmp_path_factory.mktemp("redis"))
    redis.start()
    cluster = Cluster(tmp_path_factory.mktemp("cluster"), redis)
    try:
        cluster.start()
        yield cluster
        code = cluster.stop()
        assert (code, cluster.left()) == (0, []), cluster.log()
    finally:
        redis.kill()


@pytest.fixture
def client(cluster: Cluster) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=cluster.url, timeout=60) as client:
        yield client


@pytest.fixture
def doors(cluster: Cluster) -> Iterator[dict[str, httpx.Client]]:
    """Each replica by itself."""
    clients = {name: httpx.Client(base_url=url, timeout=60) for name, url in cluster.replicas().items()}
    yield clients
    for client in clients.values():
        client.close()


def alone(body: dict[str, Any]) -> bytes:
    """The frames that a server on its own makes."""
    with serving() as server:
        return frames_of(server, server.post("/v1/rollouts", json=body).json()["id"])


def open_session_at(client: httpx.Client) -> str:
    answer = client.post("/v1/sessions", json=SESSION)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def open_sessions(door: httpx.Client) -> float:
    return metric(door, "worldcache_active_sessions", model="toy")


def test_the_configuration_of_a_cluster_is_one() -> None:
    from ray.serve.schema import ServeDeploySchema

    from deploy.ray.application import Arguments

    config = yaml.safe_load((ROOT / "deploy/ray/serve.yaml").read_text())
    ServeDeploySchema.model_validate(config)
    (application,) = config["applications"]
    settings = Settings(**Arguments.model_validate(application["args"]).settings)
    (engine,) = application["deployments"]
    assert engine["ray_actor_options"]["num_gpus"] == len(settings.devices)
    assert engine["graceful_shutdown_timeout_s"] > settings.drain_seconds + ENGINE_STOP_SECONDS
    policy = engine["autoscaling_config"]["policy"]["policy_function"]
    module, _, name = policy.partition(":")
    assert callable(getattr(import_module(module), name))


def test_events_come_as_they_happen(client: httpx.Client) -> None:
    body = slow(12)
    names, first = [], None
    with client.stream("POST", "/v1/rollouts", json={**body, "stream": True}) as stream:
        for line in stream.iter_lines():
            names += [line.removeprefix("event: ")] if line.startswith("event: ") else []
            if first is None and names and names[-1] == "frame":
                rollout_id = stream.headers["location"].rpartition("/")[2]
                first = client.get(f"/v1/rollouts/{rollout_id}").json()
    assert first is not None and first["status"] == "running" and 0 < first["frames_done"] < 12
    assert names[0] == "status" and names[-1] == "done" and names.count("frame") == 12
    assert frames_of(client, rollout_id) == alone(body)


def test_a_client_that_leaves_cancels_its_rollout(client: httpx.Client) -> None:
    with client.stream("POST", "/v1/rollouts", json={**slow(200), "stream": True}) as stream:
        rollout_id = stream.headers["location"].rpartition("/")[2]
        next(stream.iter_lines())
    eventually(lambda: client.get(f"/v1/rollouts/{rollout_id}").json()["status"] == "cancelled")


def test_both_replicas_serve(client: httpx.Client, doors: dict[str, httpx.Client]) -> None:
    def ended(door: httpx.Client) -> float:
        return metric(door, "worldcache_rollouts_total", model="toy", policy="worldcache", status="succeeded")

    before = [ended(door) for door in doors.values()]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: client.post("/v1/rollouts", json=rollout_body()), range(16)))
    assert [answer.status_code for answer in answers] == [200] * 16
    gained = [ended(door) - was for door, was in zip(doors.values(), before, strict=True)]
    assert sum(gained) == 16 and all(gained)


def test_a_session_stays_at_its_replica(client: httpx.Client, doors: dict[str, httpx.Client]) -> None:
    ids = [open_session_at(door) for door in doors.values()]
    with serving() as server:
        here = open_session_at(server)
        expected = [server.post(f"/v1/sessions/{here}/step", json=STEP).json()["frames"] for _ in range(4)]
    steps = {session_id: 0 for session_id in ids}

    def step(door: httpx.Client, session_id: str) -> None:
        answer = door.post(f"/v1/sessions/{session_id}/step", json=STEP)
        assert answer.status_code == 200, answer.text
        assert answer.json()["frames"] == expected[steps[session_id]]
        steps[session_id] += 1

    for session_id in ids:
        for door in (client, *doors.values()):  # each but one of these is passed on
            step(door, session_id)
    together = {"steps": [{"session_id": session_id, **STEP} for session_id in (*ids, "se_none")]}
    answers = client.post("/v1/sessions/step", json=together).json()["data"]
    assert [answer["session_id"] for answer in answers] == [*ids, "se_none"]
    assert [answer["frames"] for answer in answers[:2]] == [expected[3]] * 2
    assert answers[2]["error"]["code"] == "unknown_session"
    assert answers[2]["error"]["param"] == "steps.2.session_id"
    listed = [client.get("/v1/sessions", params={"limit": 1}).json()]
    listed.append(client.get("/v1/sessions", params={"after": listed[0]["last_id"]}).json())
    assert [one["id"] for page in listed for one in page["data"]] == ids[::-1]
    assert [page["has_more"] for page in listed] == [True, False]
    child = list(doors.values())[1].post(f"/v1/sessions/{ids[0]}/fork").json()["id"]
    assert [open_sessions(door) for door in doors.values()] == [2, 1]
    for door in (client, *doors.values()):
        assert door.get(f"/v1/sessions/{child}").json()["parent"] == ids[0]
    for session_id in (*ids, child):
        assert client.delete(f"/v1/sessions/{session_id}").status_code == 200
        assert client.get(f"/v1/sessions/{session_id}").status_code == 410


def test_a_session_is_driven_from_anywhere(client: httpx.Client, doors: dict[str, httpx.Client]) -> None:
    session_id = open_session_at(next(iter(doors.values())))
    pictures: list[list[bytes]] = []
    for door in (client, *doors.values()):
        with driving(door, f"/v1/sessions/{session_id}") as driver:
            driver.act(1)
            pictures.append([frame["image"] for frame in driver.frames(4)])
        assert door.post(f"/v1/sessions/{session_id}/reset").status_code == 200
    assert pictures[0] == pictures[1] == pictures[2]
    with pytest.raises(InvalidStatus, match="404"), driving(client, "/v1/sessions/se_none"):
        pass


def test_accepted_work_survives_a_replica(
    cluster: Cluster, client: httpx.Client, doors: dict[str, httpx.Client]
) -> None:
    body = slow(32)
    sessions = {name: open_session_at(door) for name, door in doors.items()}
    for session_id in sessions.values():
        assert client.post(f"/v1/sessions/{session_id}/step", json=STEP).status_code == 200
    rollout_id = client.post("/v1/rollouts", json=body, headers=LATER).json()["id"]

    def state() -> dict[str, Any]:
        answer = client.get(f"/v1/rollouts/{rollout_id}")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    eventually(lambda: state()["frames_done"] >= 8)
    running = [
        name for name, door in doors.items() if metric(door, "worldcache_active_rollouts", model="toy")
    ]
    assert len(running) == 1 and state()["status"] == "running"
    os.kill(pid_of(running[0]), signal.SIGKILL)

    def ended() -> bool:
        try:
            return state()["status"] not in ("queued", "running")
        except (AssertionError, httpx.TransportError):  # the request was at the replica that ended
            return False

    eventually(ended, 60)
    answer = state()
    assert (answer["status"], answer["frames_done"]) == ("succeeded", 32)
    assert answer["stats"]["takeovers"] == 1 and answer["stats"]["resumed_chunks"] >= 1
    assert frames_of(client, rollout_id) == alone(body)

    eventually(lambda: len(cluster.replicas()) == 2, 60)  # Serve has put another one in its place
    assert running[0] not in cluster.replicas()
    for session_id in sessions.values():  # that of the dead one goes on at another one
        found = eventually(partial(_found, client, f"/v1/sessions/{session_id}"))
        assert found.json()["frames"] == 4
        stepped = client.post(f"/v1/sessions/{session_id}/step", json=STEP)
        assert (stepped.status_code, stepped.json()["step_id"]) == (200, 1)


def _found(client: httpx.Client, path: str) -> httpx.Response | None:
    """An answer; ``None`` while it is one of the moments after an end."""
    try:
        answer = client.get(path)
    except httpx.TransportError:
        return None
    return answer if answer.status_code == 200 else None
