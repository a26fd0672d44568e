"""Deadlines choose the policy or refuse; the line is bounded, fair and says how long."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.app.conftest import rollout_body, serving
from tests.toy import ToyWorldModel

ASYNC = {"Prefer": "respond-async"}
DELAY = 0.02


def timed(**changes: Any) -> dict[str, Any]:
    """Two chunks of 40 steps; without a policy, so that the deadline chooses one."""
    return rollout_body(actions=["NOOP"] * 8, num_inference_steps=40, **changes)


def post(client: httpx.Client, body: dict[str, Any], **headers: str) -> httpx.Response:
    return client.post("/v1/rollouts", json=body, headers=headers)


@pytest.fixture(scope="module")
def measured() -> Any:
    """A server that knows what its model takes: some 20 ms a call."""
    with serving(ToyWorldModel(delay=DELAY)) as client:
        assert post(client, timed(cache={"policy": "forecast", "full_steps": 5})).status_code == 200
        yield client


def test_an_ample_deadline_needs_no_cache(measured: httpx.Client) -> None:
    stats = post(measured, timed(deadline_ms=60_000)).json()["stats"]
    assert stats["deadline"] == {"ms": 60_000, "met": True, "chosen": "none"}
    assert stats["skip_ratio"] == 0


def test_a_tighter_one_gets_fewer_steps_and_holds(measured: httpx.Client) -> None:
    stats = post(measured, timed(deadline_ms=1200)).json()["stats"]
    assert stats["deadline"]["met"] is True and stats["deadline"]["chosen"].startswith("forecast, full_steps")
    assert stats["policy"] == "forecast"
    assert 8 <= stats["steps_full"] < 1.2 / DELAY
    assert stats["latency_ms"] <= 1200


def test_what_cannot_be_met_is_refused_with_what_could(measured: httpx.Client) -> None:
    refused = post(measured, timed(deadline_ms=100))
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["param"]) == (
        504,
        "deadline_unreachable",
        "deadline_ms",
    )
    needed = int(error["message"].partition("about ")[2].partition(" ms")[0])
    assert needed > 2 * 4 * DELAY * 1000
    assert post(measured, timed(deadline_ms=5 * needed)).status_code == 200  # others may compute meanwhile


def test_the_answer_says_what_was_expected(measured: httpx.Client) -> None:
    body = timed(cache={"policy": "forecast", "full_steps": 5})
    first = post(measured, body, **ASYNC).json()["stats"]["expected_ms"]
    behind = post(measured, body).json()["stats"]
    assert 2 * 5 * DELAY * 1000 <= first < 20 * 5 * DELAY * 1000
    assert behind["expected_ms"] > first


def test_a_policy_of_the_clients_own_is_kept_or_refused(measured: httpx.Client) -> None:
    held = post(measured, timed(deadline_ms=30_000, cache={"policy": "interval", "interval": 10}))
    assert held.json()["stats"]["deadline"]["chosen"] == "interval, interval 10"
    refused = post(measured, timed(deadline_ms=700, cache="none"))
    assert refused.status_code == 504
    assert "without a cache of your own choice" in refused.json()["error"]["message"]


def test_a_deadline_that_passes_ends_the_rollout() -> None:
    model = ToyWorldModel(delay=0.02)
    with serving(model) as client:
        # Nothing has been measured, so it is tried, and cannot be done.
        response = post(client, rollout_body(actions=["NOOP"] * 200, deadline_ms=300))
        assert (response.status_code, response.json()["error"]["code"]) == (504, "deadline_exceeded")
        calls = len(model.batches)
        (rollout,) = client.get("/v1/rollouts").json()["data"]
        assert rollout["status"] == "cancelled"
        assert rollout["stats"]["deadline"]["met"] is False
        assert rollout["error"]["code"] == "deadline_exceeded"
        time.sleep(0.1)
        assert len(model.batches) == calls


def test_a_deadline_counts_the_time_in_the_line() -> None:
    with serving(ToyWorldModel(delay=0.02), max_active=1) as client:
        assert post(client, timed(cache="none")).status_code == 200
        post(client, timed(cache="none"), **ASYNC)  # 1.6 s of work
        refused = post(client, timed(deadline_ms=1000))
        assert refused.json()["error"]["code"] == "deadline_unreachable"
        assert post(client, timed(deadline_ms=30_000)).json()["stats"]["deadline"]["met"] is True


@pytest.mark.parametrize("value", [0, -5, "soon"])
def test_a_deadline_is_a_number_above_0(measured: httpx.Client, value: object) -> None:
    response = post(measured, timed(deadline_ms=value))
    assert (response.status_code, response.json()["error"]["param"]) == (422, "deadline_ms")


def test_one_client_cannot_take_the_whole_line() -> None:
    slow = rollout_body(actions=["NOOP"] * 200, num_inference_steps=50, cache="none")
    model = ToyWorldModel(delay=0.02)
    with serving(model, api_keys="alpha,beta", max_active=1, max_per_client=3, drain_seconds=0) as client:
        alpha, beta = ({"Authorization": f"Bearer {key}"} for key in ("alpha", "beta"))
        flood = [post(client, slow, **ASYNC, **alpha) for _ in range(5)]
        assert [response.status_code for response in flood] == [202, 202, 202, 429, 429]
        assert flood[-1].json()["error"]["code"] == "too_many_rollouts"
        assert int(flood[-1].headers["retry-after"]) >= 1
        assert post(client, slow, **ASYNC, **beta).status_code == 202
        for response in flood[:3]:
            client.delete(f"/v1/rollouts/{response.json()['id']}", headers=alpha)
        assert post(client, slow, **ASYNC, **alpha).status_code == 202


def test_the_urgent_overtake() -> None:
    with serving(ToyWorldModel(delay=0.01), max_active=1) as client:

        def run(priority: str) -> float:
            return float(post(client, timed(priority=priority, cache="none")).json()["finished_at"])

        with ThreadPoolExecutor(4) as pool:
            running = pool.submit(run, "standard")
            while not client.get("/v1/rollouts", params={"status": "running"}).json()["data"]:
                time.sleep(0.005)
            later = [pool.submit(run, "background"), pool.submit(run, "standard")]
            while len(client.get("/v1/rollouts", params={"status": "queued"}).json()["data"]) < 2:
                time.sleep(0.005)
            urgent = pool.submit(run, "interactive").result()
            background, standard = (future.result() for future in later)
            assert running.result() < urgent < standard < background


def test_retry_after_grows_with_what_is_waited_for() -> None:
    with serving(ToyWorldModel(delay=0.05), max_active=1, max_queue=0) as client:
        assert post(client, rollout_body(actions=["NOOP"], cache="none")).status_code == 200  # measured
        body = rollout_body(actions=["NOOP"] * 200, num_inference_steps=50, cache="none")  # 125 s
        running = post(client, body, **ASYNC)
        while client.get(f"/v1/rollouts/{running.json()['id']}").json()["status"] == "queued":
            time.sleep(0.01)
        refused = post(client, body)
        assert refused.status_code == 503
        assert 60 < int(refused.headers["retry-after"]) < 1000
        client.delete(f"/v1/rollouts/{running.json()['id']}")


def test_a_policy_that_nobody_has_measured_is_given_a_try(measured: httpx.Client) -> None:
    own = {"policy": "interval", "interval": 8}  # 10 calls; all 80 would not do
    answer = post(measured, timed(deadline_ms=1500, cache=own))
    assert answer.status_code == 200, answer.text
    assert answer.json()["stats"]["deadline"]["chosen"] == "interval, interval 8"
    assert post(measured, timed(deadline_ms=10, cache={**own, "interval": 9})).status_code == 504


def test_the_line_is_expected_as_it_will_be_served() -> None:
    with serving(ToyWorldModel(delay=DELAY), max_active=1) as client:
        assert post(client, timed(cache="none")).status_code == 200
        for _ in range(5):  # 8 s of work
            post(client, timed(cache="none", priority="background"), **ASYNC)
        last = timed(deadline_ms=6000, priority="background")
        assert post(client, last).json()["error"]["code"] == "deadline_unreachable"
        urgent = post(client, timed(deadline_ms=6000, priority="interactive"))
        assert urgent.status_code == 200, urgent.text
        assert urgent.json()["stats"]["deadline"]["met"] is True


def test_the_time_in_the_line_is_not_taken_for_the_time_of_a_step() -> None:
    with serving(ToyWorldModel(delay=DELAY), max_active=1) as client:
        assert post(client, timed(cache="none")).status_code == 200
        post(client, timed(cache="none"), **ASYNC)  # 1.6 s in the line, or more on a busy machine
        stats = post(client, timed(deadline_ms=20_000)).json()["stats"]
        assert stats["deadline"] == {"ms": 20_000, "met": True, "chosen": "none"}
        assert (stats["policy"], stats["skip_ratio"]) == ("none", 0)


def test_what_a_deadline_made_of_the_chunks_is_told() -> None:
    def slow_down(rows: object) -> None:
        model.delay = DELAY if len(model.batches) <= 90 else 4 * DELAY

    model = ToyWorldModel(before_evaluate=slow_down)
    model.delay = DELAY
    with serving(model, deadline_margin=0.5) as client:
        assert post(client, timed(cache={"policy": "forecast", "full_steps": 5})).status_code == 200
        body = rollout_body(actions=["NOOP"] * 16, num_inference_steps=40, deadline_ms=8000)
        stats = post(client, body).json()["stats"]
        full = [chunk["decisions"].count("F") for chunk in stats["chunks"]]
        assert min(full) < 40
        told = f"forecast, full_steps {min(full)}" + (f" to {max(full)}" if max(full) > min(full) else "")
        assert (stats["policy"], stats["deadline"]["chosen"]) == ("forecast", told)
        text = client.get("/metrics").text
        assert 'worldcache_rollouts_total{model="toy",policy="forecast",status="succeeded"} 2.0' in text
