"""``POST /v1/sessions/step``: many sessions at once."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.app.conftest import serving
from tests.app.test_sessions import LEFT, RIGHT, Gate, error_of, opened, session_body, step
from tests.toy import ToyWorldModel
from worldcache.models.base import Row


def entry(path: str, actions: list[Any], **more: Any) -> dict[str, Any]:
    return {"session_id": path.rpartition("/")[2], "actions": actions, **more}


def step_all(client: httpx.Client, *entries: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
    response = client.post("/v1/sessions/step", json={"steps": entries, **more})
    assert response.status_code == 200, response.text
    assert response.json()["object"] == "list"
    data: list[dict[str, Any]] = response.json()["data"]
    return data


def failure(answer: dict[str, Any]) -> tuple[str, str | None]:
    assert set(answer) == {"session_id", "error"}
    assert set(answer["error"]) == {"code", "message", "param"}
    return answer["error"]["code"], answer["error"]["param"]


def test_sessions_step_together_in_order_and_as_each_alone() -> None:
    with serving() as client:
        paths = [opened(client, seed=seed) for seed in range(8)]
        alone = [opened(client, seed=seed) for seed in range(8)]
        actions = [[seed % 4] for seed in range(8)]
        answers = step_all(client, *map(entry, paths, actions))
        for path, other, chosen, answer in zip(paths, alone, actions, answers, strict=True):
            expected = step(client, other, chosen)
            assert answer["session_id"] == path.rpartition("/")[2]
            assert answer["frames"] == expected["frames"]
            assert set(answer) == set(expected) and set(answer["stats"]) == set(expected["stats"])
            assert (answer["step_id"], answer["committed_step_id"]) == (0, 0)


def test_they_share_their_batches() -> None:
    gate = Gate()
    model = ToyWorldModel(before_evaluate=gate)
    with serving(model) as client, ThreadPoolExecutor() as pool:
        blocker, *paths = [opened(client, num_inference_steps=1) for _ in range(9)]
        gate.close()
        first = pool.submit(step, client, blocker, LEFT)
        assert gate.reached.wait(20)
        together = pool.submit(step_all, client, *(entry(path, LEFT) for path in paths))
        while client.post(f"{paths[-1]}/reset").status_code != 409:
            pass  # their steps have not begun
        gate.open()
        first.result(20)
        assert len(together.result(20)) == 8
        assert model.batches == [1, 8]


def test_bad_entries_fail_alone() -> None:
    def refuse(rows: Sequence[Row]) -> None:
        if any(row.condition[0] == 3 for row in rows):
            raise RuntimeError("a secret of the device")

    with serving(ToyWorldModel(before_evaluate=refuse)) as client:
        good, closed, broken, odd, late = (opened(client) for _ in range(5))
        client.delete(closed)
        answers = step_all(
            client,
            entry(closed, LEFT),
            entry("/v1/sessions/se_none", LEFT),
            entry(good, LEFT, step_id=0),
            entry(broken, ["ATTACK"]),
            entry(odd, [1, "JUMP", 1, 1]),
            entry(good, RIGHT),
            entry(late, LEFT, step_id=4),
        )
        assert [failure(answers[place]) for place in (0, 1, 3, 4, 5, 6)] == [
            ("session_gone", "steps.0.session_id"),
            ("unknown_session", "steps.1.session_id"),
            ("rollout_failed", None),
            ("unknown_action", "steps.4.actions.1"),
            ("step_in_progress", "steps.5.session_id"),
            ("step_conflict", "steps.6.step_id"),
        ]
        assert "secret" not in str(answers)
        assert answers[2]["committed_step_id"] == 0
        assert client.get(good).json()["frames"] == 4
        assert client.get(broken).json()["frames"] == client.get(odd).json()["frames"] == 0


def test_frames_can_be_left_out(client: httpx.Client) -> None:
    paths = [opened(client) for _ in range(2)]
    whole = step_all(client, *(entry(path, LEFT, step_id=0) for path in paths))
    last = step_all(client, *(entry(path, LEFT, step_id=0) for path in paths), frames="last")
    none = step_all(client, *(entry(path, LEFT, step_id=0) for path in paths), frames="none")
    assert [answer["frames"] for answer in last] == [answer["frames"][-1:] for answer in whole]
    assert [answer["frames"] for answer in none] == [[], []]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"steps": []}, "steps"),
        ({}, "steps"),
        ({"steps": [{"session_id": "se_1", "actions": [1]}] * 65}, "steps"),
        ({"steps": [{"session_id": "se_1"}]}, "steps.0.actions"),
        ({"steps": [{"actions": [1]}]}, "steps.0.session_id"),
        ({"steps": [{"session_id": "se_1", "actions": [1], "seed": 1}]}, "steps.0.seed"),
        ({"steps": [{"session_id": "se_1", "actions": [1]}], "frames": "first"}, "frames"),
    ],
)
def test_bodies_are_refused_by_field(client: httpx.Client, body: dict[str, Any], param: str) -> None:
    response = client.post("/v1/sessions/step", json=body)
    assert (error_of(response)[0], error_of(response)[2]) == (422, param)


def test_a_key_steps_its_own_sessions_only() -> None:
    with serving(api_keys="one,two") as client:
        one, two = ({"Authorization": f"Bearer {key}"} for key in ("one", "two"))
        path = client.post("/v1/sessions", json=session_body(), headers=one).headers["location"]
        body = {"steps": [entry(path, LEFT)]}
        answer = client.post("/v1/sessions/step", json=body, headers=two).json()["data"][0]
        assert failure(answer) == ("unknown_session", "steps.0.session_id")
        assert client.post("/v1/sessions/step", json=body).status_code == 401
