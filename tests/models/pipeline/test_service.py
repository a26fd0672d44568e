"""A pipeline behind the HTTP interface."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from tests.app.conftest import serving
from tests.engine.listening import finish
from tests.models.pipeline.tiny import FRAMES, SHORT, STEPS, picture
from worldcache.core import Observation
from worldcache.engine.engine import Engine
from worldcache.engine.rollout import RolloutRequest
from worldcache.models.pipeline.world import PipelineWorldModel
from worldcache.policies.registry import make_policy


@pytest.fixture(scope="module")
def client(folders: dict[str, Path]) -> Iterator[httpx.Client]:
    models = {
        name: PipelineWorldModel.load(folder, device=torch.device("cpu"), dtype=torch.float32)
        for name, folder in folders.items()
    }
    with serving(models_by_name=models) as running:
        yield running


def png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture(0)).save(file, "PNG")
    return file.getvalue()


def body(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "model": name,
        "observation": {"frames": [base64.b64encode(png()).decode()]},
        "actions": ["NOOP"] * SHORT,
        "guidance_scale": 3.0,
        "seed": 1,
        **changes,
    }


def frames_of(client: httpx.Client, rollout: dict[str, Any]) -> np.ndarray:
    data = client.get(rollout["artifacts"]["npz"]).raise_for_status().content
    with np.load(io.BytesIO(data)) as arrays:
        return arrays["rgb"]


@pytest.mark.parametrize("name", ["cogvideox", "wan"])
def test_a_rollout(client: httpx.Client, folders: dict[str, Path], name: str) -> None:
    cache = {"policy": "interval", "interval": 3}
    answer = client.post("/v1/rollouts", json=body(name, cache=cache))
    assert answer.status_code == 200, answer.text
    rollout = answer.json()
    assert rollout["status"] == "succeeded"
    assert (rollout["frames"], rollout["stats"]["steps_total"]) == (SHORT, STEPS)
    assert 0 < rollout["stats"]["steps_cached"] < STEPS
    assert rollout["stats"]["chunks"][0]["decisions"].startswith("F..F..")
    model = PipelineWorldModel.load(folders[name], device=torch.device("cpu"), dtype=torch.float32)
    request = RolloutRequest(
        Observation(frames=picture(0)[None]),
        (0,) * SHORT,
        make_policy("interval", interval=3),
        1,
        STEPS,
        3.0,
    )
    (listener,) = finish(Engine(), model, request)
    assert np.array_equal(frames_of(client, rollout), listener.rgb())


def test_a_video(client: httpx.Client) -> None:
    answer = client.post(
        "/v1/videos/sync",
        data={"model": "wan", "prompt": "left", "seed": "1", "num_frames": str(SHORT)},
        files={"input_reference": ("start.png", png(), "image/png")},
    )
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "video/mp4"


def test_sessions_step_and_keep_their_place(client: httpx.Client) -> None:
    fields = {key: value for key, value in body("wan").items() if key != "actions"}
    created = client.post("/v1/sessions", json=fields)
    assert created.status_code == 201, created.text
    session = f"/v1/sessions/{created.json()['id']}"
    for step in (1, 2):
        answer = client.post(f"{session}/step", json={"actions": ["NOOP"]})
        assert answer.status_code == 200, answer.text
        assert len(answer.json()["frames"]) == FRAMES
        assert client.get(session).json()["frames"] == FRAMES * step
    snapshot = client.get(f"{session}/snapshot").raise_for_status().json()
    restored = client.post("/v1/sessions", json={"snapshot": snapshot})
    assert restored.status_code == 201, restored.text


def test_what_does_not_fit_names_its_field(client: httpx.Client) -> None:
    refused = client.post("/v1/rollouts", json=body("wan", observation={"start": "centre"}))
    assert refused.status_code == 422
    assert refused.json()["error"]["param"] == "observation.start"
    cache = {"policy": "teacache", "coefficients": [1.0, 0.0]}
    failed = client.post("/v1/rollouts", json=body("wan", cache=cache))
    assert "teacache" in failed.text and "not_supported" in failed.text


def test_metrics_count_both_kinds_of_steps(client: httpx.Client) -> None:
    cache = {"policy": "taylor", "interval": 2, "warmup_steps": 2}
    client.post("/v1/rollouts", json=body("cogvideox", cache=cache)).raise_for_status()
    counts = {
        kind: float(line.rsplit(" ", 1)[1])
        for line in client.get("/metrics").text.splitlines()
        for kind in ("full", "cached")
        if line.startswith("worldcache_denoise_steps_total{")
        and all(f'"{label}"' in line for label in (kind, "cogvideox", "taylor"))
    }
    assert set(counts) == {"full", "cached"} and sum(counts.values()) == STEPS
    assert all(counts.values())
