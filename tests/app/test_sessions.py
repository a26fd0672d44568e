"""``/v1/sessions`` against a running server."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.app.conftest import rollout_body, serving
from tests.app.test_rollouts import finish, metric
from tests.tiny import load_tiny_model
from tests.toy import ToyWorldModel
from worldcache.models.base import Row
from worldcache.models.doom.world import DoomWorldModel

LEFT, RIGHT = ["MOVE_LEFT"], ["MOVE_RIGHT"]


def session_body(**changes: Any) -> dict[str, Any]:
    """A small valid session."""
    body = rollout_body(**{"cache": "none", "num_inference_steps": 4, **changes})
    del body["actions"]
    return body


def opened(client: httpx.Client, **changes: Any) -> str:
    """The path of a new session."""
    response = client.post("/v1/sessions", json=session_body(**changes))
    assert response.status_code == 201, response.text
    return response.headers["location"]


def step(client: httpx.Client, path: str, actions: list[Any], **more: Any) -> dict[str, Any]:
    response = client.post(f"{path}/step", json={"actions": actions, **more})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def error_of(response: httpx.Response) -> tuple[int, str, str | None]:
    error = response.json()["error"]
    return response.status_code, error["code"], error["param"]


def pixels(uri: str) -> np.ndarray:
    """A picture of a data URI."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def alike(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> bool:
    """Whether frames of different batches are the same but for rounding."""
    same_places = [frame["index"] for frame in one] == [frame["index"] for frame in other]
    pairs = zip(one, other, strict=True)
    differences = [pixels(a["rgb"]).astype(int) - pixels(b["rgb"]) for a, b in pairs]
    return same_places and max(abs(difference).max() for difference in differences) <= 1


class Gate:
    """Holds up a toy model's backbone from ``close`` until ``open``; notes whose action each row has."""

    def __init__(self) -> None:
        self.actions: list[int] = []
        self._open, self.reached = threading.Event(), threading.Event()
        self._open.set()

    def __call__(self, rows: Sequence[Row]) -> None:
        self.actions += [row.condition[0] for row in rows]
        self.reached.set()
        assert self._open.wait(20)

    def close(self) -> None:
        self._open.clear()
        self.reached.clear()

    def open(self) -> None:
        self._open.set()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> DoomWorldModel:
    return load_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def world(tiny: DoomWorldModel) -> Iterator[httpx.Client]:
    """A server around a real network, whose frames depend on those before."""
    with serving(models_by_name={"toy": tiny}) as client:
        yield client


def test_a_session_says_what_it_takes(client: httpx.Client) -> None:
    response = client.post("/v1/sessions", json=session_body(metadata={"run": "7"}))
    answer = response.json()
    assert response.status_code == 201
    assert response.headers["location"] == f"/v1/sessions/{answer['id']}"
    assert answer["id"].startswith("se_") and answer["object"] == "session"
    assert answer["action_space"]["names"][1] == "MOVE_LEFT"
    assert (answer["model"], answer["seed"], answer["frames_per_step"]) == ("toy", 3, 4)
    assert (answer["frames"], answer["committed_step_id"], answer["rewind_from_frame"]) == (0, None, 0)
    assert answer["websocket"] == f"/v1/sessions/{answer['id']}/ws"
    assert answer["expires_at"] > answer["created_at"]
    assert (answer["cache"], answer["policy"], answer["metadata"]) == ("none", "none", {"run": "7"})
    assert client.get(response.headers["location"]).json() == answer
    drawn = client.post("/v1/sessions", json=session_body(seed=None)).json()["seed"]
    assert drawn != client.post("/v1/sessions", json=session_body(seed=None)).json()["seed"]


def test_steps_count_from_zero_and_repeat_one_action(client: httpx.Client) -> None:
    path = opened(client)
    first = step(client, path, ["MOVE_LEFT", 1, 0, 3], step_id=0)
    assert (first["step_id"], first["committed_step_id"]) == (0, 0)
    assert [frame["index"] for frame in first["frames"]] == [0, 1, 2, 3]
    assert first["session_id"] == path.rpartition("/")[2]
    assert first["stats"]["chunks"][0]["decisions"] == "FFFF"
    assert first["stats"]["action_to_frame_ms"] > 0
    second = step(client, path, LEFT)
    assert (second["step_id"], [frame["index"] for frame in second["frames"]]) == (1, [4, 5, 6, 7])
    session = client.get(path).json()
    assert (session["frames"], session["committed_step_id"]) == (8, 1)
    assert session["stats"] == {"steps_total": 8, "steps_full": 8, "steps_cached": 0, "skip_ratio": 0.0}


def test_frames_are_pictures_with_a_scale(client: httpx.Client) -> None:
    exact = step(client, opened(client), LEFT)["frames"][0]
    assert exact["rgb"].startswith("data:image/png;base64,")
    assert pixels(exact["rgb"]).shape == (48, 64, 3)
    assert pixels(exact["depth"]).max() * exact["depth_scale"] <= 64.0
    small = step(client, opened(client, output={"format": "jpeg", "modalities": ["rgb"]}), LEFT)["frames"][0]
    assert small["rgb"].startswith("data:image/jpeg;base64,")
    assert set(small) == {"index", "rgb"}


def test_steps_equal_one_long_rollout(world: httpx.Client) -> None:
    actions = [1, 1, 1, 1, 2, 2, 0, 3, 3, 3, 3, 3]
    cache = {"policy": "forecast", "full_steps": 3}
    rollout = world.post(
        "/v1/rollouts", json=rollout_body(cache=cache, num_inference_steps=8, actions=actions)
    ).json()
    arrays = np.load(io.BytesIO(world.get(rollout["artifacts"]["npz"]).content))
    path = (
        opened(world)
        and world.post(
            "/v1/sessions", json={**session_body(), "cache": cache, "num_inference_steps": 8}
        ).headers["location"]
    )
    answers = [step(world, path, actions[i : i + 4]) for i in (0, 4, 8)]
    frames = [frame for answer in answers for frame in answer["frames"]]
    assert np.array_equal(np.stack([pixels(frame["rgb"]) for frame in frames]), arrays["rgb"])
    depth = np.stack([pixels(frame["depth"]) for frame in frames]) * frames[0]["depth_scale"]
    assert np.abs(depth - arrays["depth"]).max() <= frames[0]["depth_scale"]
    decisions = [chunk["decisions"] for answer in answers for chunk in answer["stats"]["chunks"]]
    assert decisions == [chunk["decisions"] for chunk in rollout["stats"]["chunks"]]


def test_a_longer_step_equals_two_shorter_ones(world: httpx.Client) -> None:
    long = step(world, opened(world, frames_per_step=8), [1, 1, 1, 1, 2, 2, 2, 2])["frames"]
    path = opened(world)
    assert long == step(world, path, LEFT)["frames"] + step(world, path, RIGHT)["frames"]


def test_a_fork_has_the_same_past_and_its_own_future(world: httpx.Client) -> None:
    path = opened(world)
    past = step(world, path, LEFT)
    response = world.post(f"{path}/fork")
    assert response.status_code == 201
    fork = response.headers["location"]
    assert response.json()["parent"] == path.rpartition("/")[2]
    assert (response.json()["frames"], response.json()["committed_step_id"]) == (4, 0)
    assert step(world, fork, LEFT, step_id=0)["frames"] == past["frames"]
    same, forked = step(world, path, RIGHT), step(world, fork, RIGHT)
    assert forked["frames"] == same["frames"]
    other = world.post(f"{path}/fork", json={}).headers["location"]
    assert step(world, other, ["ATTACK"])["frames"] != step(world, fork, LEFT)["frames"]
    assert world.get(path).json()["frames"] == 8
    assert world.post(f"{path}/fork", json={"seed": 4}).status_code == 422


def test_rewinding_and_resetting_lead_to_the_same_frames(world: httpx.Client) -> None:
    path = opened(world)
    first, second, third = (step(world, path, [action])["frames"] for action in (1, 2, 3))
    answer = world.post(f"{path}/rewind", json={"to_frame": 4}).json()
    assert (answer["frames"], answer["committed_step_id"]) == (4, 0)
    assert step(world, path, LEFT, step_id=1)["frames"] != second
    world.post(f"{path}/rewind", json={"to_frame": 4})
    assert [step(world, path, [action])["frames"] for action in (2, 3)] == [second, third]
    assert world.post(f"{path}/reset").json()["committed_step_id"] is None
    assert [step(world, path, [action])["frames"] for action in (1, 2)] == [first, second]
    assert error_of(world.post(f"{path}/rewind", json={"to_frame": 6})) == (422, "invalid_value", "to_frame")
    assert error_of(world.post(f"{path}/rewind", json={"to_frame": 12})) == (422, "invalid_value", "to_frame")


def test_only_the_latest_steps_can_be_rewound_to() -> None:
    with serving(session_history_steps=2) as client:
        path = opened(client)
        for _ in range(4):
            step(client, path, LEFT)
        assert client.get(path).json()["rewind_from_frame"] == 12
        refused = client.post(f"{path}/rewind", json={"to_frame": 8})
        assert error_of(refused) == (409, "rewind_too_far", "to_frame")
        assert "12 or later" in refused.json()["error"]["message"]
        assert client.post(f"{path}/rewind", json={"to_frame": 12}).json()["frames"] == 12
        assert client.post(f"{path}/rewind", json={"to_frame": 0}).json()["frames"] == 0


def test_a_repeated_step_answers_the_same_without_computing() -> None:
    model = ToyWorldModel()
    with serving(model) as client:
        path = opened(client)
        step(client, path, LEFT, step_id=0)
        answer = step(client, path, RIGHT, step_id=1)
        calls = len(model.batches)
        assert step(client, path, RIGHT, step_id=1) == answer
        assert len(model.batches) == calls
        for wrong in (0, 3):
            refused = client.post(f"{path}/step", json={"actions": LEFT, "step_id": wrong})
            assert error_of(refused) == (409, "step_conflict", "step_id")
        client.post(f"{path}/rewind", json={"to_frame": 4})
        refused = client.post(f"{path}/step", json={"actions": LEFT, "step_id": 0})
        assert "not kept" in refused.json()["error"]["message"]
        assert metric(client, "worldcache_rejected_total", reason="step_conflict") == 3


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ({"actions": [1, 1]}, 422, "invalid_value", "actions"),
        ({"actions": [1] * 5}, 422, "invalid_value", "actions"),
        ({"actions": []}, 422, "invalid_value", "actions"),
        ({"actions": ["JUMP"]}, 422, "unknown_action", "actions.0"),
        ({"actions": [0, 0, 0, 4]}, 422, "invalid_value", "actions.3"),
        ({"actions": [1], "step_id": -1}, 422, "invalid_value", "step_id"),
        ({"actions": [1], "step_id": "0"}, 422, "invalid_value", "step_id"),
        ({"actions": [1], "stream": True}, 422, "unknown_field", "stream"),
        ({}, 422, "missing_field", "actions"),
    ],
)
def test_steps_are_refused_by_field(
    client: httpx.Client, body: dict[str, Any], status: int, code: str, param: str
) -> None:
    path = opened(client)
    assert error_of(client.post(f"{path}/step", json=body)) == (status, code, param)
    assert client.get(path).json()["frames"] == 0


@pytest.mark.parametrize(
    ("changes", "status", "code", "param"),
    [
        ({"model": "none"}, 422, "unknown_model", "model"),
        ({"frames_per_step": 6}, 422, "invalid_value", "frames_per_step"),
        ({"frames_per_step": 512}, 422, "too_many_frames", "frames_per_step"),
        ({"observation": {"start": "nowhere"}}, 422, "unknown_start", "observation.start"),
        ({"observation": {"frames": ["?"]}}, 422, "invalid_image", "observation.frames.0"),
        ({"observation": None}, 422, "invalid_value", "observation"),
        ({"cache": {"policy": "interval", "interval": 0}}, 422, "invalid_value", "cache.interval"),
        ({"num_inference_steps": 10_000}, 422, "too_many_steps", "num_inference_steps"),
        ({"output": {"format": "mp4"}}, 422, "invalid_value", "output.format"),
        ({"output": {"modalities": ["sound"]}}, 422, "unknown_modality", "output.modalities.0"),
        ({"actions": [1]}, 422, "unknown_field", "actions"),
        ({"stream": True}, 422, "unknown_field", "stream"),
        ({"conditioning": {"prompt": "x"}}, 422, "not_supported", "conditioning.prompt"),
        ({"snapshot": {}}, 422, "missing_field", "snapshot.model"),
    ],
)
def test_sessions_are_refused_by_field(
    client: httpx.Client, changes: dict[str, Any], status: int, code: str, param: str
) -> None:
    response = client.post("/v1/sessions", json={**session_body(), **changes})
    assert error_of(response) == (status, code, param)


def test_one_step_at_a_time_and_nothing_beside_it() -> None:
    gate = Gate()
    with serving(ToyWorldModel(before_evaluate=gate)) as client, ThreadPoolExecutor() as pool:
        path = opened(client)
        step(client, path, LEFT)
        gate.close()
        running = pool.submit(step, client, path, RIGHT)
        assert gate.reached.wait(20)
        for route, body in (("step", {"actions": LEFT}), ("rewind", {"to_frame": 0}), ("reset", None)):
            refused = client.post(f"{path}/{route}", json=body)
            assert error_of(refused) == (409, "step_in_progress", None)
            assert refused.headers["retry-after"] == "1"
        assert client.post(f"{path}/fork").json()["frames"] == 4
        assert client.get("/v1/rollouts").json()["data"] == []
        gate.open()
        assert running.result(20)["step_id"] == 1
        assert step(client, path, LEFT)["step_id"] == 2


def test_a_step_goes_on_although_its_client_leaves() -> None:
    gate = Gate()
    with serving(ToyWorldModel(before_evaluate=gate)) as client:
        path = opened(client)
        gate.close()
        with pytest.raises(httpx.TimeoutException):
            client.post(f"{path}/step", json={"actions": LEFT, "step_id": 0}, timeout=0.3)
        assert gate.reached.wait(20)
        gate.open()
        for _ in range(1000):
            if client.get(path).json()["frames"] == 4:
                break
            time.sleep(0.01)
        other = opened(client)
        assert step(client, path, LEFT, step_id=0)["frames"] == step(client, other, LEFT)["frames"]


def test_a_step_that_fails_leaves_the_session_as_it_was() -> None:
    def refuse(rows: Sequence[Row]) -> None:
        if any(row.condition[0] == 3 for row in rows):
            raise RuntimeError("a secret of the device")

    with serving(ToyWorldModel(before_evaluate=refuse)) as client:
        path, untouched = opened(client), opened(client)
        step(client, path, LEFT)
        failed = client.post(f"{path}/step", json={"actions": ["ATTACK"], "step_id": 1})
        assert error_of(failed)[:2] == (500, "rollout_failed")
        assert "secret" not in failed.text
        assert client.get(path).json()["committed_step_id"] == 0
        step(client, untouched, LEFT)
        assert step(client, path, RIGHT, step_id=1)["frames"] == step(client, untouched, RIGHT)["frames"]
        assert metric(client, "worldcache_denoise_steps_total", model="toy", kind="full") == 16


def test_closed_sessions_are_gone_and_unknown_ones_unknown(client: httpx.Client) -> None:
    path = opened(client)
    before = metric(client, "worldcache_active_sessions", model="toy")
    assert client.delete(path).json() == {
        "id": path.rpartition("/")[2],
        "object": "session",
        "deleted": True,
    }
    assert metric(client, "worldcache_active_sessions", model="toy") == before - 1
    for response in (
        client.get(path),
        client.delete(path),
        client.post(f"{path}/step", json={"actions": LEFT}),
        client.post(f"{path}/fork"),
    ):
        assert error_of(response) == (410, "session_gone", None)
    assert error_of(client.get("/v1/sessions/se_none")) == (404, "unknown_session", None)


def test_closing_drops_a_step() -> None:
    gate = Gate()
    with serving(ToyWorldModel(before_evaluate=gate)) as client, ThreadPoolExecutor() as pool:
        path = opened(client)
        gate.close()
        running = pool.submit(client.post, f"{path}/step", json={"actions": LEFT})
        assert gate.reached.wait(20)
        assert client.delete(path).status_code == 200
        gate.open()
        assert error_of(running.result(20)) == (410, "session_gone", None)


def test_idle_sessions_expire_and_looking_does_not_keep_them() -> None:
    with serving(session_ttl_seconds=0.3) as client:
        path = opened(client)
        for _ in range(1000):
            response = client.get(path)
            if response.status_code != 200:
                break
            time.sleep(0.01)
        assert error_of(response) == (410, "session_gone", None)
        assert "0.3 s" in response.json()["error"]["message"]
        # swept without anybody's asking for sessions
        opened(client)
        for _ in range(1000):
            if metric(client, "worldcache_active_sessions", model="toy") == 0:
                break
            time.sleep(0.01)
        else:
            raise AssertionError("the session was not swept")


def test_a_session_in_use_does_not_expire() -> None:
    gate = Gate()
    with serving(ToyWorldModel(before_evaluate=gate), session_ttl_seconds=0.2) as client:
        path = opened(client)
        gate.close()
        with ThreadPoolExecutor() as pool:
            running = pool.submit(client.post, f"{path}/step", json={"actions": LEFT})
            assert gate.reached.wait(20)
            time.sleep(0.5)
            assert client.get(path).status_code == 200
            gate.open()
            assert running.result(20).status_code == 200


def test_sessions_are_bounded() -> None:
    with serving(max_sessions=3, max_sessions_per_client=2, api_keys="one,two") as client:
        one, two = ({"Authorization": f"Bearer {key}"} for key in ("one", "two"))
        paths = [
            client.post("/v1/sessions", json=session_body(), headers=one).headers["location"]
            for _ in range(2)
        ]
        refused = client.post("/v1/sessions", json=session_body(), headers=one)
        assert error_of(refused) == (429, "too_many_sessions", None)
        assert 0 < int(refused.headers["retry-after"]) <= 600
        assert error_of(client.post(f"{paths[0]}/fork", headers=one))[1] == "too_many_sessions"
        assert client.post("/v1/sessions", json=session_body(), headers=two).status_code == 201
        full = client.post("/v1/sessions", json=session_body(), headers=two)
        assert error_of(full) == (503, "session_limit", None)
        assert 0 < int(full.headers["retry-after"]) <= 600
        client.delete(paths[0], headers=one)
        assert client.post("/v1/sessions", json=session_body(), headers=two).status_code == 201


def test_a_key_sees_its_own_sessions_only() -> None:
    with serving(api_keys="one,two") as client:
        one, two = ({"Authorization": f"Bearer {key}"} for key in ("one", "two"))
        assert client.post("/v1/sessions", json=session_body()).status_code == 401
        path = client.post("/v1/sessions", json=session_body(), headers=one).headers["location"]
        for method, route in (("GET", ""), ("DELETE", ""), ("POST", "/fork"), ("GET", "/snapshot")):
            response = client.request(method, f"{path}{route}", headers=two)
            assert error_of(response) == (404, "unknown_session", None)
        assert client.get("/v1/sessions", headers=two).json()["data"] == []
        assert len(client.get("/v1/sessions", headers=one).json()["data"]) == 1
        assert client.delete(path, headers=one).status_code == 200
        assert client.get(path, headers=two).status_code == 404
        assert client.get(path, headers=one).status_code == 410


def test_sessions_are_listed_newest_first() -> None:
    with serving() as client:
        ids = [opened(client).rpartition("/")[2] for _ in range(3)][::-1]
        page = client.get("/v1/sessions", params={"limit": 2}).json()
        assert ([one["id"] for one in page["data"]], page["has_more"]) == (ids[:2], True)
        rest = client.get("/v1/sessions", params={"limit": 2, "after": page["last_id"]}).json()
        assert ([one["id"] for one in rest["data"]], rest["has_more"]) == (ids[2:], False)


def test_the_cache_can_be_changed_on_the_way(client: httpx.Client) -> None:
    path = opened(client)
    assert step(client, path, LEFT)["stats"]["chunks"][0]["decisions"] == "FFFF"
    answer = client.patch(path, json={"cache": {"policy": "interval", "interval": 2}}).json()
    assert (answer["cache"], answer["policy"]) == ({"policy": "interval", "interval": 2}, "interval")
    stats = step(client, path, LEFT)["stats"]
    assert (stats["policy"], stats["chunks"][0]["decisions"], stats["skip_ratio"]) == (
        "interval",
        "F.F.",
        0.5,
    )
    assert client.get(path).json()["stats"]["skip_ratio"] == 0.25
    refused = client.patch(path, json={"cache": "fastest"})
    assert error_of(refused) == (422, "unknown_preset", "cache")
    assert error_of(client.patch(path, json={})) == (422, "missing_field", "cache")
    assert client.patch(path, json={"cache": None}).json()["policy"] == "worldcache"


def test_a_plan_shares_batches_and_changes_nothing() -> None:
    model = ToyWorldModel()
    with serving(model) as client:
        path = opened(client)
        step(client, path, LEFT)
        before = client.get(path).json()
        model.batches.clear()
        candidates = [[action] for action in (0, 1, 2, 3) * 2]
        answer = client.post(f"{path}/plan", json={"candidates": candidates}).json()
        assert 8 in model.batches
        assert [branch["index"] for branch in answer["branches"]] == list(range(8))
        frames = [branch["frames"] for branch in answer["branches"]]
        assert frames[:4] == frames[4:] and frames[0] != frames[1]
        after = client.get(path).json()
        assert {**after, "expires_at": 0} == {**before, "expires_at": 0}
        assert step(client, path, RIGHT)["frames"] == frames[2]


def test_a_plans_branches_have_lengths_of_their_own(world: httpx.Client) -> None:
    path = opened(world)
    step(world, path, LEFT)
    candidates = [[2], [2, 2, 2, 2, 3, 3], [0] * 4]
    everything = world.post(f"{path}/plan", json={"candidates": candidates}).json()["branches"]
    assert [len(branch["frames"]) for branch in everything] == [4, 8, 4]
    assert [frame["index"] for frame in everything[1]["frames"]] == list(range(4, 12))
    assert everything[0]["stats"]["chunks"][0]["decisions"] == "FFFF"
    last = world.post(f"{path}/plan", json={"candidates": candidates, "frames": "last"}).json()["branches"]
    for branch, whole in zip(last, everything, strict=True):
        assert alike(branch["frames"], whole["frames"][-1:])
    none = world.post(f"{path}/plan", json={"candidates": candidates, "frames": "none"}).json()["branches"]
    assert [branch["frames"] for branch in none] == [[], [], []]
    taken = step(world, path, RIGHT)["frames"] + step(world, path, ["ATTACK"])["frames"]
    assert alike(taken, everything[1]["frames"])
    assert not alike(taken[:4], everything[2]["frames"])


def test_a_plans_branch_fails_alone() -> None:
    def refuse(rows: Sequence[Row]) -> None:
        if any(row.condition[0] == 3 for row in rows):
            raise RuntimeError("a secret of the device")

    with serving(ToyWorldModel(before_evaluate=refuse)) as client:
        response = client.post(f"{opened(client)}/plan", json={"candidates": [[1], [3], [2]]})
        good, bad, better = response.json()["branches"]
        assert len(good["frames"]) == len(better["frames"]) == 4 and good["error"] is None
        assert (bad["frames"], bad["stats"], bad["error"]["code"]) == ([], None, "rollout_failed")
        assert "secret" not in response.text


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"candidates": []}, "invalid_value", "candidates"),
        ({"candidates": [[1], []]}, "invalid_value", "candidates.1"),
        ({"candidates": [[1], [1, "JUMP"]]}, "unknown_action", "candidates.1.1"),
        ({"candidates": [[1]] * 33}, "too_many_candidates", "candidates"),
        ({"candidates": [[1], [1] * 257]}, "too_many_frames", "candidates.1"),
        ({"candidates": [[1] * 256] * 9}, "too_many_frames", "candidates"),
        ({"candidates": [[1]], "frames": "some"}, "invalid_value", "frames"),
    ],
)
def test_plans_are_refused_by_field(
    client: httpx.Client, body: dict[str, Any], code: str, param: str
) -> None:
    assert error_of(client.post(f"{opened(client)}/plan", json=body)) == (422, code, param)


def test_a_plan_is_dropped_when_its_client_leaves() -> None:
    model = ToyWorldModel(delay=0.02)
    with serving(model) as client:
        path = opened(client)
        with pytest.raises(httpx.TimeoutException):
            client.post(f"{path}/plan", json={"candidates": [[1] * 256] * 2}, timeout=0.3)
        for _ in range(1000):
            if client.get("/v1/models/toy").json()["rollouts"] == 0:
                break
            time.sleep(0.01)
        assert len(model.batches) < 2 * 64 * 4


def test_a_step_overtakes_rollouts() -> None:
    gate = Gate()
    with serving(ToyWorldModel(before_evaluate=gate), max_active=1) as client, ThreadPoolExecutor() as pool:
        path = opened(client)
        gate.close()
        body = rollout_body(actions=["NOOP"] * 4, cache="none", num_inference_steps=4)
        waiting = [
            client.post("/v1/rollouts", json=body, headers={"Prefer": "respond-async"}).json()["id"]
            for _ in range(3)
        ]
        assert gate.reached.wait(20)
        running = pool.submit(client.post, f"{path}/step", json={"actions": LEFT})
        while client.get("/v1/models/toy").json()["rollouts"] < 4:
            time.sleep(0.01)
        gate.open()
        assert running.result(20).status_code == 200
        assert all(finish(client, one)["status"] == "succeeded" for one in waiting)
        assert sorted(gate.actions[:8]) == [0] * 4 + [1] * 4  # beside the one that ran, before those in line
        assert gate.actions[8:] == [0] * 8


def test_steps_count_in_metrics_but_are_no_rollouts() -> None:
    with serving() as client:
        path = opened(client)
        step(client, path, LEFT)
        assert metric(client, "worldcache_active_sessions", model="toy") == 1
        assert metric(client, "worldcache_action_to_frame_seconds_count", model="toy") == 1
        assert metric(client, "worldcache_frames_total", model="toy") == 4
        assert metric(client, "worldcache_denoise_steps_total", model="toy", policy="none", kind="full") == 4
        assert metric(client, "worldcache_skip_ratio_count", model="toy", policy="none") == 1
        assert "worldcache_rollouts_total{" not in client.get("/metrics").text
        assert client.get("/v1/models/toy").json()["rollouts"] == 0


def test_an_idle_session_lets_its_model_go(tiny: DoomWorldModel) -> None:
    with serving(models_by_name={"toy": tiny}) as client:
        path = opened(client)
        step(client, path, LEFT)
        assert client.post("/v1/models/toy/unload").json()["status"] == "cold"
        assert client.get(path).json()["action_space"]["type"] == "discrete"
        again = step(client, path, RIGHT)["frames"]
        other = opened(client)
        step(client, other, LEFT)
        assert step(client, other, RIGHT)["frames"] == again


def test_a_session_has_an_end() -> None:
    with serving(session_max_frames=8) as client:
        path = opened(client)
        step(client, path, LEFT)
        step(client, path, LEFT)
        full = client.post(f"{path}/step", json={"actions": LEFT})
        assert error_of(full) == (409, "session_full", None)
        client.post(f"{path}/reset")
        assert step(client, path, LEFT)["step_id"] == 0


@pytest.fixture(scope="module")
def snapshot(world: httpx.Client) -> dict[str, Any]:
    """A document of a session after two steps."""
    path = opened(world, metadata={"run": "7"}, output={"format": "png", "modalities": ["rgb"]})
    step(world, path, LEFT)
    step(world, path, ["MOVE_RIGHT", 2, 0, 3])
    response = world.get(f"{path}/snapshot")
    assert response.status_code == 200
    answer: dict[str, Any] = response.json()
    return answer


def test_a_snapshot_goes_on_elsewhere(
    world: httpx.Client, tiny: DoomWorldModel, snapshot: dict[str, Any]
) -> None:
    assert (snapshot["object"], snapshot["frames"]) == ("session.snapshot", 8)
    assert snapshot["actions"] == ["MOVE_LEFT"] * 4 + ["MOVE_RIGHT", 2, 0, 3]
    path = opened(world, output={"format": "png", "modalities": ["rgb"]})
    first = step(world, path, LEFT)
    step(world, path, [2, 2, 0, 3])
    with serving(models_by_name={"toy": tiny}) as client:
        response = client.post("/v1/sessions", json={"snapshot": snapshot})
        assert response.status_code == 201
        answer, restored = response.json(), response.headers["location"]
        assert (answer["frames"], answer["committed_step_id"], answer["seed"]) == (8, 1, 3)
        assert (answer["metadata"], answer["rewind_from_frame"]) == ({"run": "7"}, 8)
        for action in ("ATTACK", "MOVE_LEFT"):
            assert step(client, restored, [action])["frames"] == step(world, path, [action])["frames"]
        again = client.get(f"{restored}/snapshot").json()
        assert again["actions"] == snapshot["actions"] + ["ATTACK"] * 4 + ["MOVE_LEFT"] * 4
        client.post(f"{restored}/reset")
        assert step(client, restored, LEFT)["frames"] == first["frames"]


def test_a_snapshot_of_the_beginning(client: httpx.Client) -> None:
    path = opened(client)
    document = client.get(f"{path}/snapshot").json()
    restored = client.post("/v1/sessions", json={"snapshot": document})
    assert restored.json()["committed_step_id"] is None
    same = step(client, restored.headers["location"], LEFT, step_id=0)["frames"]
    assert same == step(client, path, LEFT)["frames"]


def damage(text: str, change: Callable[[bytes], bytes]) -> str:
    return base64.b64encode(change(base64.b64decode(text))).decode()


@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("version", 2, "snapshot.version"),
        ("object", "session", "snapshot.object"),
        ("model", "none", "snapshot.model"),
        ("seed", -1, "snapshot.seed"),
        ("seed", None, "snapshot.seed"),
        ("num_inference_steps", 10_000, "snapshot.num_inference_steps"),
        ("guidance_scale", 1e9, "snapshot.guidance_scale"),
        ("frames_per_step", 3, "snapshot.frames_per_step"),
        ("cache", {"policy": "interval", "interval": 0}, "snapshot.cache.interval"),
        ("frames", 4, "snapshot.frames"),
        ("actions", [1] * 7 + ["JUMP"], "snapshot.actions.7"),
        ("output", {"modalities": ["sound"]}, "snapshot.output.modalities.0"),
        ("context", "?", "snapshot.context"),
        ("context", "", "snapshot.context"),
        ("start", lambda text: damage(text, lambda data: data[:-4]), "snapshot.start"),
        ("context", lambda text: damage(text, lambda data: b"\xff" * 8 + data[8:]), "snapshot.context"),
        (
            "context",
            lambda text: damage(text, lambda d: d.replace(b"F32", b"I32")),
            "snapshot.context.frames",
        ),
        ("context", lambda text: damage(text, lambda d: d.replace(b"F32", b"F99")), "snapshot.context"),
        ("context", lambda text: damage(text, lambda d: d[:-4] + b"\0\0\xc0\x7f"), "snapshot.context.frames"),
        (
            "context",
            lambda text: damage(text, lambda d: d.replace(b"[4,4,48,64]", b"[4,4,64,48]")),
            "snapshot.context.frames",
        ),
        (
            "context",
            lambda text: damage(text, lambda d: d.replace(b"actions", b"reactio")),
            "snapshot.context.reactio",
        ),
        ("more", 1, "snapshot.more"),
    ],
)
def test_a_damaged_snapshot_is_refused_by_field(
    world: httpx.Client, snapshot: dict[str, Any], field: str, value: Any, param: str
) -> None:
    damaged = value(snapshot[field]) if callable(value) else value
    response = world.post("/v1/sessions", json={"snapshot": {**snapshot, field: damaged}})
    assert response.status_code == 422
    assert response.json()["error"]["param"] == param


def test_sessions_are_described(client: httpx.Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert {"get", "post"} <= set(paths["/v1/sessions"])
    assert {"get", "patch", "delete"} <= set(paths["/v1/sessions/{session_id}"])
