"""Health, models, policies, metrics, keys, and a real process that drains."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from app.settings import Settings, check_binding
from tests.app.conftest import rollout_body, serving
from tests.toy import ToyWorldModel
from worldcache.errors import InvalidInput

ROOT = Path(__file__).parents[2]


def test_health_and_version(client: httpx.Client) -> None:
    assert client.get("/livez").json() == {"status": "ok"}
    ready = client.get("/readyz").json()
    assert ready == {"status": "ready", "checks": {"model:toy": "warm", "engine": "ok", "admission": "ok"}}
    assert client.get("/version").json()["version"]
    assert "WorldCache" in client.get("/docs").text


def test_models_are_described(client: httpx.Client) -> None:
    (model,) = client.get("/v1/models").json()["data"]
    assert model == client.get("/v1/models/toy").json()
    assert model["action_space"] == {
        "type": "discrete",
        "names": ["NOOP", "MOVE_LEFT", "MOVE_RIGHT", "ATTACK"],
    }
    for key in (
        "modalities", "resolution", "fps", "context_frames", "chunk_frames", "num_inference_steps", "starts",
        "presets", "status", "memory_bytes", "device", "licence",
    ):  # fmt: skip
        assert key in model, key
    assert model["status"] == "warm"
    assert model["presets"]["fast"] == {"policy": "interval", "interval": 5}


def test_policies_are_described(client: httpx.Client) -> None:
    policies = {policy["name"]: policy for policy in client.get("/v1/policies").json()["data"]}
    assert {"none", "interval", "taylor", "worldcache"} <= set(policies)
    properties = policies["worldcache"]["parameters"]["properties"]
    assert properties["max_skip"]["default"] == 6
    assert policies["worldcache"]["plans_ahead"] is True


def test_metrics_have_bounded_labels(client: httpx.Client) -> None:
    rollout = client.post("/v1/rollouts", json=rollout_body()).json()
    client.get(f"/v1/rollouts/{rollout['id']}")
    client.get("/no/such/route/12345")
    text = client.get("/metrics").text
    assert 'route="/v1/rollouts/{rollout_id}"' in text
    assert 'route="unmatched"' in text
    assert rollout["id"] not in text and "12345" not in text
    for name in (
        "worldcache_rollout_latency_seconds", "worldcache_first_frame_seconds", "worldcache_queue_seconds",
        "worldcache_skip_ratio", "worldcache_token_class_ratio", "worldcache_backbone_seconds",
        "worldcache_batch_size",
    ):  # fmt: skip
        assert f"{name}_count{{" in text, name
    assert 'worldcache_model_ready{model="toy"} 1.0' in text


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_process_whose_engine_has_died_says_so() -> None:
    def die(rows: object) -> None:
        raise SystemExit

    with serving(ToyWorldModel(before_evaluate=die)) as client:
        answer = client.post("/v1/rollouts", json=rollout_body())
        assert answer.status_code >= 500
        alive = client.get("/livez")
        assert (alive.status_code, alive.json()) == (503, {"status": "stopped"})
        assert client.get("/readyz").json()["checks"]["engine"] == "stopped"


def test_api_keys_are_required_and_separate_their_owners() -> None:
    with serving(api_keys="alpha,beta") as client:
        assert client.get("/livez").status_code == 200
        for headers in ({}, {"Authorization": "Bearer gamma"}, {"Authorization": "alpha"}):
            response = client.post("/v1/rollouts", json=rollout_body(), headers=headers)
            assert (response.status_code, response.json()["error"]["code"]) == (401, "unauthorized")
        assert client.get("/v1/models").status_code == 401
        alpha, beta = ({"Authorization": f"Bearer {key}"} for key in ("alpha", "beta"))
        rollout_id = client.post("/v1/rollouts", json=rollout_body(), headers=alpha).json()["id"]
        assert client.get(f"/v1/rollouts/{rollout_id}", headers=alpha).status_code == 200
        assert client.get(f"/v1/rollouts/{rollout_id}", headers=beta).status_code == 404
        assert client.delete(f"/v1/rollouts/{rollout_id}", headers=beta).status_code == 404
        assert client.get("/v1/rollouts", headers=beta).json()["data"] == []


def test_only_loopback_without_keys() -> None:
    for host in ("127.0.0.1", "::1", "localhost"):
        check_binding(Settings(host=host))
    with pytest.raises(InvalidInput, match="API_KEYS"):
        check_binding(Settings(host="0.0.0.0"))
    check_binding(Settings(host="0.0.0.0", api_keys="k"))
    check_binding(Settings(host="0.0.0.0", insecure=True))


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLDCACHE_API_KEYS", "one, two")
    monkeypatch.setenv("WORLDCACHE_MAX_FRAMES", "12")
    settings = Settings()
    assert [key.get_secret_value() for key in settings.api_keys] == ["one", "two"]
    assert settings.max_frames == 12
    assert "one" not in repr(settings)


SERVE = """
import sys, uvicorn
from app.main import create_app
from app.settings import Settings
from tests.toy import ToyWorldModel
app = create_app(Settings(drain_seconds=20), models_by_name={"toy": ToyWorldModel(delay=0.02)})
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
"""


@pytest.mark.server
def test_a_process_finishes_its_work_before_it_stops() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-c", SERVE, str(port)], cwd=ROOT)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            for _ in range(600):
                try:
                    if client.get("/readyz").status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                time.sleep(0.1)
            body = rollout_body(cache="none", actions=["NOOP"] * 16)  # 4 chunks of 10 calls: 0.8 s and more
            with client.stream("POST", "/v1/rollouts", json=body) as response:
                process.send_signal(signal.SIGTERM)
                response.read()
            assert response.status_code == 200
            assert response.json()["frames_done"] == 16
        assert process.wait(30) in (0, -signal.SIGTERM)
    finally:
        process.kill()
        process.wait()
