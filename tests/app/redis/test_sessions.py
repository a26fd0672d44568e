"""Sessions whose server ends."""

from __future__ import annotations

import time
from typing import Any

import httpx
import pytest

from tests.app.conftest import serving
from tests.app.redis.server import RedisServer
from tests.app.redis.test_service import eventually, replica
from tests.toy import ToyWorldModel

BODY = {"model": "toy", "observation": {"start": "centre"}, "num_inference_steps": 5, "seed": 3}
ACTIONS = ("MOVE_LEFT", "MOVE_RIGHT", "NOOP")


def step(client: httpx.Client, session_id: str, number: int) -> dict[str, Any]:
    body = {"actions": [ACTIONS[number % 3]], "step_id": number}
    response = client.post(f"/v1/sessions/{session_id}/step", json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    return f"{request.node.name}:"


def test_a_session_goes_on_at_another_server(redis_server: RedisServer, prefix: str) -> None:
    with serving() as alone:
        undisturbed = alone.post("/v1/sessions", json=BODY).json()["id"]
        expected = [step(alone, undisturbed, number)["frames"] for number in range(4)]
    with replica(redis_server, prefix) as one:
        session = one.post("/v1/sessions", json={**BODY, "metadata": {"a": "b"}}).json()
        path = f"/v1/sessions/{session['id']}"
        for number in range(3):
            assert step(one, session["id"], number)["frames"] == expected[number]
    with replica(redis_server, prefix) as other:
        found = other.get(path).json()
        assert (found["id"], found["frames"], found["committed_step_id"]) == (session["id"], 12, 2)
        for name in ("seed", "metadata", "created_at", "output", "frames_per_step"):
            assert found[name] == session[name]
        repeated = other.post(f"{path}/step", json={"actions": ["NOOP"], "step_id": 2})
        assert (repeated.status_code, repeated.json()["error"]["code"]) == (409, "step_conflict")
        assert step(other, session["id"], 3)["frames"] == expected[3]
        assert [one["id"] for one in other.get("/v1/sessions").json()["data"]] == [session["id"]]
        assert other.delete(path).status_code == 200
        assert other.get(path).status_code == 410
    with replica(redis_server, prefix) as third:
        assert third.get(path).status_code == 404


def test_a_session_is_at_one_server(redis_server: RedisServer, prefix: str) -> None:
    with (
        replica(redis_server, prefix, session_snapshot_seconds=0.05) as one,
        replica(redis_server, prefix) as other,
    ):
        session_id = one.post("/v1/sessions", json=BODY).json()["id"]
        path = f"/v1/sessions/{session_id}"
        refused = eventually(lambda: (r := other.get(path)).status_code == 409 and r)
        assert refused.json()["error"]["code"] == "session_elsewhere"
        assert step(one, session_id, 0)["committed_step_id"] == 0
        assert other.get("/v1/sessions/se_unknown").status_code == 404
        key = f"{prefix}session:{session_id}"
        redis_server.client().hset(key, "home", "a server that took it")
        body = {"actions": [ACTIONS[1]], "step_id": 1}
        taken = one.post(f"{path}/step", json=body)
        assert taken.status_code in (200, 410)  # whichever comes first: the step, or the news
        eventually(lambda: one.get(path).status_code == 410)


def test_a_session_is_its_owners(redis_server: RedisServer, prefix: str) -> None:
    keys = {"api_keys": ("first", "second"), "session_snapshot_seconds": 0.05}
    with replica(redis_server, prefix, **keys) as one:
        mine = {"Authorization": "Bearer first"}
        path = f"/v1/sessions/{one.post('/v1/sessions', json=BODY, headers=mine).json()['id']}"
    with replica(redis_server, prefix, **keys) as other:
        assert other.get(path, headers={"Authorization": "Bearer second"}).status_code == 404
        assert other.get(path, headers=mine).status_code == 200


def test_sessions_of_a_model_that_keeps_its_state_go_with_their_server(
    redis_server: RedisServer, prefix: str
) -> None:
    class Secretive(ToyWorldModel):
        def export_context(self, context: Any) -> Any:
            raise self._keeps_no_contexts()

    with replica(redis_server, prefix, Secretive(), session_snapshot_seconds=0.05) as one:
        session_id = one.post("/v1/sessions", json=BODY).json()["id"]
        time.sleep(0.2)
        step(one, session_id, 0)
        time.sleep(0.2)
        step(one, session_id, 1)
    with replica(redis_server, prefix) as other:
        assert other.get(f"/v1/sessions/{session_id}").status_code == 404
