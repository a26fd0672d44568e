"""Models that raise or return no numbers: their rollouts fail, alone, and say nothing of the reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import torch

from tests.app.conftest import rollout_body, serving
from tests.toy import ToyWorldModel
from worldcache.models.base import Row

ATTACK = 3


def faulty(rows: Sequence[Row]) -> list[int]:
    """The rows of rollouts that attack."""
    return [index for index, row in enumerate(rows) if row.condition[0] == ATTACK]


class Raising(ToyWorldModel):
    def evaluate(self, rows: Sequence[Row]) -> torch.Tensor:
        if faulty(rows):
            raise RuntimeError("a secret path: /models/secret")
        return super().evaluate(rows)


class Poisoned(ToyWorldModel):
    def evaluate(self, rows: Sequence[Row]) -> torch.Tensor:
        outputs = super().evaluate(rows)
        outputs[faulty(rows)] = float("nan")
        return outputs


@pytest.fixture(params=[Raising, Poisoned])
def client(request: pytest.FixtureRequest) -> Iterator[httpx.Client]:
    kind: Callable[..., ToyWorldModel] = request.param
    with serving(kind(delay=0.005)) as running:
        yield running


@pytest.mark.parametrize("cache", ["none", "balanced", "fast"])
def test_a_fault_is_its_own_rollouts(client: httpx.Client, cache: str) -> None:
    def post(action: str) -> httpx.Response:
        return client.post("/v1/rollouts", json=rollout_body(actions=[action] * 4, cache=cache))

    with ThreadPoolExecutor(4) as pool:
        responses = list(pool.map(post, ["NOOP", "ATTACK", "MOVE_LEFT", "ATTACK"]))
    assert [response.status_code for response in responses] == [200, 500, 200, 500]
    for response in responses[1::2]:
        error = response.json()["error"]
        assert error["code"] == "rollout_failed" and error["request_id"]
        assert "secret" not in response.text and "Traceback" not in response.text
        kept = client.get(response.headers["location"])
        assert kept.json()["status"] == "failed" and "secret" not in kept.text
    assert client.get("/readyz").status_code == 200
    assert post("NOOP").status_code == 200


def test_a_session_goes_on_after_a_fault(client: httpx.Client) -> None:
    body = {"model": "toy", "observation": {"start": "centre"}, "num_inference_steps": 4}
    path = "/v1/sessions/" + client.post("/v1/sessions", json=body).json()["id"]
    failed = client.post(f"{path}/step", json={"actions": ["ATTACK"], "step_id": 0})
    assert (failed.status_code, failed.json()["error"]["code"]) == (500, "rollout_failed")
    assert "secret" not in failed.text
    taken = client.post(f"{path}/step", json={"actions": ["NOOP"], "step_id": 0})
    assert taken.status_code == 200
