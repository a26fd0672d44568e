"""The large models, with tiny random weights in their published layout, over HTTP from the settings on."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.app.conftest import serving
from tests.models.aether import tiny as aether
from tests.models.sana_wm import tiny as sana_wm
from tests.models.voyager import tiny as voyager
from worldcache.policies.registry import policy_names

WRITERS: dict[str, Callable[[Path], Path]] = {
    "aether": aether.write_folder,
    "voyager": voyager.write_folder,
    "sana-wm": sana_wm.write_folder,
}
FAMILIES = tuple(WRITERS)
STEPS = 6
UNCALIBRATED = ("teacache", "magcache")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A server of the tiny models, loaded as an operator would have them loaded."""
    folder = tmp_path_factory.mktemp("models")
    models = ",".join(f"{family}={family}:{WRITERS[family](folder / family)}" for family in FAMILIES)
    with serving(models=models, timeout=120) as running:
        yield running


def png(pixels: np.ndarray) -> str:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def picture(seed: int = 0) -> str:
    return png(np.random.default_rng(seed).integers(0, 255, (48, 72, 3)).astype(np.uint8))


def observation(family: str, seed: int = 0) -> dict[str, Any]:
    seen: dict[str, Any] = {"frames": [picture(seed)]}
    if family == "voyager":
        depth = np.linspace(1, 4, 48 * 72, dtype=np.float32).reshape(48, 72)
        stream = io.BytesIO()
        np.save(stream, depth)
        seen["depth"] = [base64.b64encode(stream.getvalue()).decode()]
    return seen


def body(client: httpx.Client, family: str, **changes: Any) -> dict[str, Any]:
    """A small valid request with a camera that turns."""
    frames = client.get(f"/v1/models/{family}").json()["chunk_lengths"][0]
    camera = {"trajectory": "turn_left", "frames": frames}
    request = {
        "model": family,
        "observation": observation(family),
        "conditioning": {"camera": camera},
        "num_inference_steps": STEPS,
        "seed": 3,
        "cache": "none",
    }
    return {**request, **changes}


def arrays(client: httpx.Client, rollout: dict[str, Any]) -> dict[str, np.ndarray]:
    assert rollout.get("status") == "succeeded", rollout
    return dict(np.load(io.BytesIO(client.get(rollout["artifacts"]["npz"]).content)))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_camera_moves_through_the_observation(client: httpx.Client, family: str) -> None:
    info = client.get(f"/v1/models/{family}").json()
    rollout = client.post("/v1/rollouts", json=body(client, family)).json()
    found = arrays(client, rollout)
    frames = info["chunk_lengths"][0] + info["observed_frames"]
    assert set(found) == {modality["name"] for modality in info["modalities"]}
    assert all(len(array) == frames and np.isfinite(array).all() for array in found.values())
    size = (info["resolution"]["height"], info["resolution"]["width"])
    assert found["rgb"].shape[1:] == (*size, 3) and found["rgb"].std() > 0
    assert info["notice"] and info["licence"]
    other = body(client, family)
    other["conditioning"]["camera"]["trajectory"] = "forward"
    moved = arrays(client, client.post("/v1/rollouts", json=other).json())
    assert not np.array_equal(found["rgb"], moved["rgb"])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("policy", [name for name in policy_names() if name not in UNCALIBRATED])
def test_every_policy_works(client: httpx.Client, family: str, policy: str) -> None:
    small = {"worldcache": {"warmup_steps": 2, "drift_threshold": 10.0}, "taylor": {"interval": 2}}
    cache = {"policy": policy, **small.get(policy, {})}
    if policy == "forecast":
        cache["full_steps"] = 4
    rollout = client.post("/v1/rollouts", json=body(client, family, cache=cache)).json()
    assert arrays(client, rollout)
    decisions = rollout["stats"]["chunks"][0]["decisions"]
    assert len(decisions) == STEPS and decisions[0] == "F"
    if policy in ("interval", "taylor", "worldcache", "forecast", "hicache"):
        assert "." in decisions
    if policy == "none":
        assert "." not in decisions


@pytest.mark.parametrize("family", FAMILIES)
def test_rollouts_share_batches_and_equal_those_alone(client: httpx.Client, family: str) -> None:
    requests = [
        body(client, family, seed=seed, cache=cache, observation=observation(family, seed))
        for seed, cache in ((1, "none"), (2, {"policy": "interval", "interval": 2}), (3, "none"))
    ]
    alone = [arrays(client, client.post("/v1/rollouts", json=one).json())["rgb"] for one in requests]
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda one: client.post("/v1/rollouts", json=one).json(), requests))
    for before, answer in zip(alone, answers, strict=True):
        together = arrays(client, answer)["rgb"].astype(int)
        assert np.abs(together - before).max() <= 1
    text = client.get("/metrics").text
    shared = [
        line for line in text.splitlines() if line.startswith(f'worldcache_batch_size_sum{{model="{family}"')
    ]
    calls = [
        line
        for line in text.splitlines()
        if line.startswith(f'worldcache_batch_size_count{{model="{family}"')
    ]
    assert float(shared[0].rpartition(" ")[2]) > float(calls[0].rpartition(" ")[2])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_rollout_can_be_cancelled_on_its_way(client: httpx.Client, family: str) -> None:
    request = body(client, family, num_inference_steps=200)
    accepted = client.post("/v1/rollouts", json=request, headers={"Prefer": "respond-async"})
    assert accepted.status_code == 202
    path = accepted.headers["location"]
    while client.get(path).json()["status"] == "queued":
        time.sleep(0.01)
    client.delete(path)
    assert client.get(path).json()["status"] == "cancelled"
    assert client.post("/v1/rollouts", json=body(client, family)).json()["status"] == "succeeded"


@pytest.mark.parametrize("family", FAMILIES)
def test_events_tell_of_frames_and_chunks(client: httpx.Client, family: str) -> None:
    request = body(client, family, stream=True, output={"format": "jpeg"})
    text = client.post("/v1/rollouts", json=request).text
    names = [line.removeprefix("event: ") for line in text.splitlines() if line.startswith("event:")]
    frames = client.get(f"/v1/models/{family}").json()
    expected = frames["chunk_lengths"][0] + frames["observed_frames"]
    assert names.count("frame") == expected and names[-1] == "done"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_session_goes_on_from_its_last_frame(client: httpx.Client, family: str) -> None:
    info = client.get(f"/v1/models/{family}").json()
    length = info["chunk_lengths"][0]
    request = body(client, family, frames_per_step=length)
    conditioning = {name: value for name, value in request["conditioning"].items() if name != "camera"}
    session = client.post("/v1/sessions", json={**request, "conditioning": conditioning}).json()
    pose = np.eye(4)
    pose[2, 3] = 0.1
    for index in range(2):
        answer = client.post(f"/v1/sessions/{session['id']}/step", json={"actions": [pose.tolist()]})
        assert answer.status_code == 200, answer.text
        indices = [frame["index"] for frame in answer.json()["frames"]]
        assert indices == list(range(index * length, (index + 1) * length))


def test_aether_plans_and_reconstructs(client: httpx.Client) -> None:
    plan = body(client, "aether")
    plan["conditioning"] = {"task": "planning", "goal": picture(5), "fps": 24, **plan["conditioning"]}
    assert arrays(client, client.post("/v1/rollouts", json=plan).json())
    video = {"frames": [picture(seed) for seed in range(17)]}
    free = {"camera": {"trajectory": "free", "frames": 16}, "task": "reconstruction"}
    request = body(client, "aether", observation=video, conditioning=free, num_inference_steps=None)
    rollout = client.post("/v1/rollouts", json=request).json()
    found = arrays(client, rollout)
    assert rollout["stats"]["steps_total"] == 4
    assert found["pose"].shape == (17, 4, 4)
    request["observation"] = {"frames": video["frames"][:5]}
    error = client.post("/v1/rollouts", json=request).json()["error"]
    assert error["param"] == "observation.frames"


def test_what_a_model_needs_is_said_by_name(client: httpx.Client) -> None:
    request = body(client, "voyager", observation={"frames": [picture()]})
    error = client.post("/v1/rollouts", json=request).json()["error"]
    assert error["param"] == "observation.depth"
    request = body(client, "voyager")
    request["conditioning"]["camera"]["trajectory"] = "free"
    error = client.post("/v1/rollouts", json=request).json()["error"]
    assert error["param"] == "conditioning.camera.trajectory"
    request = body(client, "aether")
    request["conditioning"]["prompt"] = "a street"
    error = client.post("/v1/rollouts", json=request).json()["error"]
    assert (error["code"], error["param"]) == ("not_supported", "conditioning.prompt")
