"""Redis goes away and comes back."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from app.artifacts import FileArtifacts
from tests.app.conftest import rollout_body, serving
from tests.app.redis.server import RedisServer
from tests.app.redis.test_service import LATER, eventually, frames_of, replica, slow
from tests.app.test_rollouts import finish, metric
from tests.toy import ToyWorldModel


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A server for one test, which may kill it."""
    folder = tmp_path / "redis"
    folder.mkdir()
    server = RedisServer(folder)
    server.start()
    yield server
    server.kill()


def readiness(client: httpx.Client) -> tuple[int, str]:
    response = client.get("/readyz")
    return response.status_code, response.json()["checks"]["redis"]


def test_synchronous_work_goes_on_and_the_rest_is_refused_until_redis_is_back(own_redis: RedisServer) -> None:
    with replica(own_redis, "a:") as one, replica(own_redis, "a:") as other:
        assert readiness(one) == (200, "ok")
        assert metric(one, "worldcache_redis_up") == 1
        before = one.post("/v1/rollouts", json=rollout_body()).json()["id"]
        own_redis.kill()
        eventually(lambda: readiness(one) == (503, "unreachable"))
        assert metric(one, "worldcache_redis_up") == 0
        headers = {"Idempotency-Key": "while away"}
        during = one.post("/v1/rollouts", json=rollout_body(), headers=headers)
        assert (during.status_code, during.json()["status"]) == (200, "succeeded")
        again = one.post("/v1/rollouts", json=rollout_body(), headers=headers)
        assert again.json()["id"] == during.json()["id"]
        assert one.get(f"/v1/rollouts/{again.json()['id']}/frames.npz").status_code == 200
        for method, path in (("POST", ""), ("GET", ""), ("GET", f"/{before}")):
            body = rollout_body() if method == "POST" else None
            refused = one.request(method, f"/v1/rollouts{path}", json=body, headers=LATER)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "store_unavailable")
            assert int(refused.headers["retry-after"]) >= 1
        own_redis.start()
        for server in (one, other):
            eventually(lambda server=server: readiness(server) == (200, "ok"))
        assert other.get(f"/v1/rollouts/{before}").json()["status"] == "succeeded"
        path = f"/v1/rollouts/{during.json()['id']}"
        eventually(lambda: other.get(path).status_code == 200)
        assert other.get(path).json()["artifacts"] == during.json()["artifacts"]
        assert frames_of(other, during.json()["id"]) == frames_of(one, before)
        bound = other.post("/v1/rollouts", json=rollout_body(), headers=headers)
        assert bound.json()["id"] == during.json()["id"]
        later = one.post("/v1/rollouts", json=rollout_body(), headers=LATER)
        assert finish(other, later.json()["id"])["status"] == "succeeded"


@pytest.mark.parametrize("lossy", [False, True], ids=["with its data", "empty"])
def test_what_runs_goes_on_and_is_written_down_when_redis_is_back(
    own_redis: RedisServer, lossy: bool
) -> None:
    with replica(own_redis, "a:", ToyWorldModel(delay=0.01)) as one:
        rollout_id = one.post("/v1/rollouts", json=slow(16), headers=LATER).json()["id"]
        path = f"/v1/rollouts/{rollout_id}"
        eventually(lambda: one.get(path).json()["frames_done"] >= 4)
        own_redis.kill()
        if lossy:
            shutil.rmtree(own_redis.folder)
            own_redis.folder.mkdir()
        done = one.get(path).json()["frames_done"]
        eventually(lambda: one.get(path).json()["frames_done"] > done)
        own_redis.start()
        answer = finish(one, rollout_id)
        assert (answer["status"], answer["frames_done"]) == ("succeeded", 16)
        with replica(own_redis, "a:") as other:
            eventually(lambda: other.get(path).status_code == 200)
            assert other.get(path).json() == answer
            assert len(frames_of(other, rollout_id)) == 16 * 48 * 64 * (3 + 4)
        assert own_redis.client().xlen("a:work") == 0


def test_what_ends_while_redis_is_away_is_not_run_twice(own_redis: RedisServer) -> None:
    with replica(own_redis, "a:", ToyWorldModel(delay=0.01)) as one:
        rollout_id = one.post("/v1/rollouts", json=slow(8), headers=LATER).json()["id"]
        path = f"/v1/rollouts/{rollout_id}"
        eventually(lambda: one.get(path).json()["status"] == "running")
        own_redis.kill()
        assert finish(one, rollout_id)["status"] == "succeeded"
        time.sleep(2)  # longer than a lease
        with replica(own_redis, "a:", wait_until_ready=False) as other:
            own_redis.start()
            eventually(lambda: readiness(other) == (200, "ok"))
            answer = finish(other, rollout_id)
            assert (answer["status"], answer["stats"]["takeovers"]) == ("succeeded", 0)
            assert metric(other, "worldcache_backbone_seconds_count", model="toy") == 0


def test_a_server_starts_without_redis_and_heals(own_redis: RedisServer) -> None:
    own_redis.kill()
    with replica(own_redis, "a:", wait_until_ready=False) as client:
        eventually(lambda: client.get("/readyz").json()["checks"].get("model:toy") == "warm")
        assert readiness(client) == (503, "unreachable")
        assert client.post("/v1/rollouts", json=rollout_body()).status_code == 200
        own_redis.start()
        eventually(lambda: readiness(client) == (200, "ok"))
        later = client.post("/v1/rollouts", json=rollout_body(), headers=LATER)
        assert finish(client, later.json()["id"])["status"] == "succeeded"


def test_redis_without_memory_refuses_asynchronous_work_alone(own_redis: RedisServer) -> None:
    with replica(own_redis, "a:") as client, replica(own_redis, "a:") as other:
        own_redis.client().config_set("maxmemory", 1)
        later = client.post("/v1/rollouts", json=rollout_body(), headers=LATER)
        assert (later.status_code, later.json()["error"]["code"]) == (503, "store_unavailable")
        done = client.post("/v1/rollouts", json=rollout_body())
        path = f"/v1/rollouts/{done.json()['id']}"
        assert (done.status_code, other.get(path).status_code) == (200, 404)
        own_redis.client().config_set("maxmemory", 0)
        eventually(lambda: other.get(path).status_code == 200)
        assert frames_of(other, done.json()["id"])


def test_a_full_disk_fails_one_rollout_with_a_reason(
    tmp_path: Path, own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = FileArtifacts._write

    def full(self: FileArtifacts, path: Path, data: bytes) -> None:
        if not (tmp_path / "room").exists():
            path = Path("/dev/full")
            with path.open("wb") as file:
                file.write(data)
                file.flush()
        write(self, path, data)

    def failing(self: FileArtifacts, path: Path, data: bytes) -> None:
        try:
            full(self, path, data)
        except OSError as error:
            raise StorageFailed(f"the frames cannot be kept: {error.strerror}") from error

    from app.artifacts import StorageFailed

    monkeypatch.setattr(FileArtifacts, "_write", failing)
    folder = tmp_path / "artifacts"
    with replica(own_redis, "a:", artifact_dir=str(folder)) as client:
        failed = client.post("/v1/rollouts", json=rollout_body())
        assert (failed.status_code, failed.json()["error"]["code"]) == (500, "storage_failed")
        assert "No space left" in failed.json()["error"]["message"]
        assert str(tmp_path) not in failed.text
        (tmp_path / "room").touch()
        rollout_id = client.post("/v1/rollouts", json=rollout_body()).json()["id"]
        assert [path.name.partition(".")[0] for path in folder.glob("*/*")] == ["frames"]
        assert client.get(f"/v1/rollouts/{rollout_id}/video").status_code == 200
        client.delete(f"/v1/rollouts/{rollout_id}")
        assert not list(folder.iterdir())


def test_artifacts_in_a_folder_without_redis(tmp_path: Path) -> None:
    with serving(artifact_dir=str(tmp_path)) as client:
        rollout_id = client.post("/v1/rollouts", json=rollout_body()).json()["id"]
        assert (tmp_path / rollout_id / "frames.npz").stat().st_size > 1000
        assert client.get(f"/v1/rollouts/{rollout_id}/frames.npz").status_code == 200
