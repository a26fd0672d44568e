"""``/v1/rollouts`` against a running server."""

from __future__ import annotations

import io
import threading
import time
from dataclasses import replace
from typing import Any

import av
import httpx
import numpy as np
import pytest
from PIL import Image

from tests.app.conftest import rollout_body, serving
from tests.toy import ToyWorldModel
from worldcache.core import Preset


def metric(client: httpx.Client, name: str, **labels: str) -> float:
    """The value of a sample on ``/metrics``; 0 if it is not there."""
    wanted = {f'{key}="{value}"' for key, value in labels.items()}
    for line in client.get("/metrics").text.splitlines():
        head, _, value = line.rpartition(" ")
        found, _, rest = head.partition("{")
        if found == name and wanted <= set(rest.rstrip("}").split(",")):
            return float(value)
    return 0.0


def finish(client: httpx.Client, rollout_id: str) -> dict[str, Any]:
    """Poll until the rollout has ended."""
    for _ in range(1000):
        answer = client.get(f"/v1/rollouts/{rollout_id}").json()
        if answer["status"] not in ("queued", "running"):
            return answer
        time.sleep(0.01)
    raise AssertionError("the rollout did not end")


def test_a_rollout_is_answered_when_it_has_finished(client: httpx.Client) -> None:
    response = client.post("/v1/rollouts", json=rollout_body(metadata={"run": "7"}))
    assert response.status_code == 200
    answer = response.json()
    assert response.headers["location"] == f"/v1/rollouts/{answer['id']}"
    assert (answer["object"], answer["status"], answer["model"]) == ("rollout", "succeeded", "toy")
    assert (answer["frames"], answer["frames_done"], answer["seed"]) == (6, 6, 3)
    assert answer["created_at"] <= answer["started_at"] <= answer["finished_at"]
    assert answer["metadata"] == {"run": "7"}
    assert answer["error"] is None
    stats = answer["stats"]
    assert stats["policy"] == "worldcache"
    assert stats["latency_ms"] >= stats["first_frame_ms"] > 0
    assert client.get(response.headers["location"]).json() == answer


def test_decisions_add_up_to_the_steps_and_to_the_counters(client: httpx.Client) -> None:
    labels = {"model": "toy", "policy": "interval"}
    before = [
        metric(client, "worldcache_denoise_steps_total", **labels, kind=kind) for kind in ("full", "cached")
    ]
    stats = client.post(
        "/v1/rollouts", json=rollout_body(cache={"policy": "interval", "interval": 3})
    ).json()["stats"]
    letters = "".join(chunk["decisions"] for chunk in stats["chunks"])
    assert letters == "F..F..F..F" * 2
    assert (letters.count("F"), letters.count(".")) == (stats["steps_full"], stats["steps_cached"])
    assert stats["skip_ratio"] == pytest.approx(stats["steps_cached"] / stats["steps_total"])
    after = [
        metric(client, "worldcache_denoise_steps_total", **labels, kind=kind) for kind in ("full", "cached")
    ]
    assert [b - a for a, b in zip(before, after, strict=True)] == [8, 12]
    assert all(len(chunk["drift"]) == 10 and set(chunk["drift"]) == {None} for chunk in stats["chunks"])


def test_worldcache_tells_classes_and_drift(client: httpx.Client) -> None:
    (chunk, _) = client.post(
        "/v1/rollouts", json=rollout_body(cache={"policy": "worldcache"}, num_inference_steps=20)
    ).json()["stats"]["chunks"]
    assert set(chunk["token_classes"]) == {"rgb", "depth"}
    for shares in chunk["token_classes"].values():
        assert sum(shares.values()) == pytest.approx(1)
    assert all(isinstance(drift, float) for drift in chunk["drift"])


def test_skips_and_errors_are_told_by_modality(client: httpx.Client) -> None:
    chunk, _ = client.post(
        "/v1/rollouts", json=rollout_body(cache={"policy": "interval", "interval": 3})
    ).json()["stats"]["chunks"]
    assert chunk["fallbacks"] == 0
    # 12 and 4 tokens, 6 cached steps of 10. The outputs at 0, 3, 6, 9 are 2, 1.7, 1.4, 1.1, each predicted
    # by the one before it: off by .3.
    error = pytest.approx((3 * 0.3**2 / (1.7**2 + 1.4**2 + 1.1**2)) ** 0.5)
    assert chunk["modalities"] == {
        "rgb": {"tokens": 12, "skipped": 72, "error": error},
        "depth": {"tokens": 4, "skipped": 24, "error": error},
    }
    uncached, _ = client.post("/v1/rollouts", json=rollout_body(cache="none")).json()["stats"]["chunks"]
    assert uncached["modalities"]["rgb"] == {"tokens": 12, "skipped": 0, "error": None}


@pytest.mark.parametrize("policy", ["magcache", "teacache"])
def test_a_policy_without_a_calibration_is_refused(client: httpx.Client, policy: str) -> None:
    response = client.post("/v1/rollouts", json=rollout_body(cache={"policy": policy}))
    assert response.status_code == 422
    error = response.json()["error"]
    assert (error["code"], error["param"]) == ("policy_not_calibrated", "cache.policy")


@pytest.mark.parametrize(
    "cache",
    [
        {"policy": "hicache"},
        {"policy": "easycache"},
        {"policy": "magcache", "ratios": [1, 0.99, 1.01]},
        {"policy": "teacache", "coefficients": [1, 0]},
        {"policy": "worldcache", "predictor": "random", "trigger": "norm"},
    ],
)
def test_every_policy_rolls_out(client: httpx.Client, cache: dict[str, Any]) -> None:
    body = rollout_body(cache=cache, num_inference_steps=20, guidance_scale=2.0)
    answer = client.post("/v1/rollouts", json=body).json()
    assert answer["status"] == "succeeded"
    assert answer["stats"]["policy"] == cache["policy"]
    assert answer["stats"]["steps_cached"] > 0


def test_a_calibrated_model_serves_and_shows_its_calibration() -> None:
    model = ToyWorldModel()
    tuned = Preset("magcache", {"max_skip": 1}, measured={"psnr": 31.0})
    model.info = replace(
        model.info,
        presets={**model.info.presets, "tuned": tuned},
        calibrations={"magcache": {"ratios": [1.0]}},
        auto_preset="tuned",
    )
    with serving(model) as client:
        shown = client.get("/v1/models/toy").json()
        assert shown["presets"]["tuned"] == {"policy": "magcache", "max_skip": 1}
        assert shown["preset_measurements"] == {"tuned": {"psnr": 31.0}}
        assert (shown["default_preset"], shown["auto_preset"]) == ("balanced", "tuned")
        chunk, _ = client.post("/v1/rollouts", json=rollout_body(cache="auto")).json()["stats"]["chunks"]
        assert chunk["decisions"] == "FF.F.F.F.F"


def test_the_video_itself_with_accept(client: httpx.Client) -> None:
    response = client.post("/v1/rollouts", json=rollout_body(), headers={"Accept": "video/mp4"})
    assert response.headers["content-type"] == "video/mp4"
    assert float(response.headers["x-skip-ratio"]) > 0
    with av.open(io.BytesIO(response.content)) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
        assert float(video.streams.video[0].average_rate) == 17.5
    assert len(frames) == 6
    assert frames[0].shape == (240, 320, 3)  # 48x64, five times as large


def test_artifacts_of_a_finished_rollout(client: httpx.Client) -> None:
    answer = client.post("/v1/rollouts", json=rollout_body()).json()
    artifacts = answer["artifacts"]
    arrays = np.load(io.BytesIO(client.get(artifacts["npz"]).content))
    assert (arrays["rgb"].shape, arrays["rgb"].dtype) == ((6, 48, 64, 3), np.uint8)
    assert (arrays["depth"].shape, arrays["depth"].dtype) == ((6, 48, 64), np.float32)
    for modality in ("rgb", "depth"):
        video = client.get(artifacts["video"][modality])
        assert video.headers["content-type"] == "video/mp4"
        assert video.content[4:8] == b"ftyp"
    base = f"/v1/rollouts/{answer['id']}"
    frame = Image.open(io.BytesIO(client.get(f"{base}/frames/5").content))
    assert np.array_equal(np.asarray(frame), arrays["rgb"][5])
    depth = client.get(f"{base}/frames/5", params={"modality": "depth"})
    counts = np.asarray(Image.open(io.BytesIO(depth.content))).astype(np.float64)
    scale = float(depth.headers["x-depth-scale"])
    assert np.abs(counts * scale - arrays["depth"][5]).max() <= scale
    webp = Image.open(io.BytesIO(client.get(f"{base}/video", params={"format": "webp"}).content))
    assert webp.n_frames == 6  # type: ignore[attr-defined]


@pytest.mark.parametrize("format", ["mp4", "webp", "png", "jpeg", "npz", "none"])
def test_inline_artifacts(client: httpx.Client, format: str) -> None:
    output = {"format": format, "inline": True, "modalities": ["depth"]}
    artifacts = client.post("/v1/rollouts", json=rollout_body(output=output)).json()["artifacts"]
    inline = artifacts["inline"]
    if format == "none":
        assert inline == {}
    elif format == "npz":
        assert inline["npz"]["base64"]
    elif format in ("mp4", "webp"):
        assert set(inline["video"]) == {"depth"} == set(artifacts["video"])
    else:
        assert len(inline["frames"]["depth"]) == 6 == len(artifacts["frames"]["depth"])


def test_same_request_same_frames_other_action_other_frames(client: httpx.Client) -> None:
    def frames(**changes: Any) -> bytes:
        answer = client.post("/v1/rollouts", json=rollout_body(**changes)).json()
        arrays = np.load(io.BytesIO(client.get(answer["artifacts"]["npz"]).content))
        return arrays["rgb"].tobytes()

    assert frames() == frames()
    assert frames() != frames(seed=4)
    assert frames() != frames(actions=["MOVE_RIGHT"] * 6)


def test_a_drawn_seed_is_told(client: httpx.Client) -> None:
    first, second = (client.post("/v1/rollouts", json=rollout_body(seed=None)).json() for _ in range(2))
    assert first["seed"] != second["seed"]


def test_presets_and_the_default(client: httpx.Client) -> None:
    def policy(**changes: Any) -> str:
        return client.post("/v1/rollouts", json=rollout_body(**changes)).json()["stats"]["policy"]

    assert policy(cache="none") == "none"
    assert policy(cache="fast") == "interval"
    assert policy() == policy(cache="auto") == policy(cache={"policy": "worldcache"}) == "worldcache"


def test_asynchronous_work_is_polled(client: httpx.Client) -> None:
    response = client.post("/v1/rollouts", json=rollout_body(), headers={"Prefer": "respond-async"})
    assert response.status_code == 202
    assert response.headers["preference-applied"] == "respond-async"
    answer = finish(client, response.json()["id"])
    assert answer["status"] == "succeeded"
    listed = client.get("/v1/rollouts", params={"limit": 1}).json()
    assert listed["data"][0]["id"] == answer["id"]
    after = client.get("/v1/rollouts", params={"limit": 1, "after": answer["id"]}).json()
    assert after["data"][0]["id"] != answer["id"]
    assert client.get("/v1/rollouts", params={"status": "failed"}).json()["data"] == []


def test_a_finished_rollout_can_be_removed(client: httpx.Client) -> None:
    rollout_id = client.post("/v1/rollouts", json=rollout_body()).json()["id"]
    assert client.delete(f"/v1/rollouts/{rollout_id}").json()["deleted"] is True
    missing = client.get(f"/v1/rollouts/{rollout_id}")
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "unknown_rollout"


def test_idempotency_keys(client: httpx.Client) -> None:
    headers = {"Idempotency-Key": "once"}
    first = client.post("/v1/rollouts", json=rollout_body(), headers=headers).json()
    again = client.post("/v1/rollouts", json=rollout_body(), headers=headers).json()
    assert first["id"] == again["id"]
    other = client.post("/v1/rollouts", json=rollout_body(seed=9), headers=headers)
    assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_key_reused")
    bad = client.post("/v1/rollouts", json=rollout_body(model="nope"), headers={"Idempotency-Key": "b"})
    assert bad.status_code == 422
    good = client.post("/v1/rollouts", json=rollout_body(), headers={"Idempotency-Key": "b"})
    assert good.status_code == 200  # a refused request does not use up its key


def test_a_live_rollout_is_cancelled() -> None:
    model = ToyWorldModel(delay=0.05)
    with serving(model) as client:
        body = rollout_body(actions=["NOOP"] * 200, num_inference_steps=50, cache="none")
        rollout_id = client.post("/v1/rollouts", json=body, headers={"Prefer": "respond-async"}).json()["id"]
        early = client.get(f"/v1/rollouts/{rollout_id}/frames.npz")
        assert (early.status_code, early.json()["error"]["code"]) == (409, "not_finished")
        answer = client.delete(f"/v1/rollouts/{rollout_id}").json()
        assert answer["status"] == "cancelled"
        calls = len(model.batches)
        assert client.get(f"/v1/rollouts/{rollout_id}/video").json()["error"]["code"] == "no_frames"
        time.sleep(0.2)
        assert len(model.batches) == calls
        assert metric(client, "worldcache_active_rollouts", model="toy") == 0
        assert metric(client, "worldcache_rollouts_total", model="toy", status="cancelled") == 1


def test_a_client_that_goes_away_frees_the_device() -> None:
    model = ToyWorldModel(delay=0.02)
    with serving(model) as client:
        body = rollout_body(actions=["NOOP"] * 200, num_inference_steps=50, cache="none")
        with pytest.raises(httpx.ReadTimeout):
            client.post("/v1/rollouts", json=body, timeout=httpx.Timeout(5, read=0.3))
        for _ in range(200):
            if metric(client, "worldcache_rollouts_total", model="toy", status="cancelled") == 1:
                break
            time.sleep(0.02)
        calls = len(model.batches)
        time.sleep(0.2)
        assert len(model.batches) == calls


def test_a_cancelled_synchronous_request_is_409() -> None:
    with serving(ToyWorldModel(delay=0.05)) as client:
        body = rollout_body(actions=["NOOP"] * 200, num_inference_steps=50, cache="none")
        answers: list[httpx.Response] = []
        waiting = threading.Thread(target=lambda: answers.append(client.post("/v1/rollouts", json=body)))
        waiting.start()
        while not (data := client.get("/v1/rollouts").json()["data"]):
            time.sleep(0.01)
        client.delete(f"/v1/rollouts/{data[0]['id']}")
        waiting.join(10)
        assert (answers[0].status_code, answers[0].json()["error"]["code"]) == (409, "rollout_cancelled")


def test_a_full_server_says_so_at_once() -> None:
    with serving(ToyWorldModel(delay=0.05), max_active=1, max_queue=1) as client:
        body = rollout_body(actions=["NOOP"] * 200, num_inference_steps=50, cache="none")
        headers = {"Prefer": "respond-async"}
        accepted = [client.post("/v1/rollouts", json=body, headers=headers).json()["id"] for _ in range(2)]
        full = client.post("/v1/rollouts", json=body, headers=headers)
        assert (full.status_code, full.json()["error"]["code"]) == (503, "queue_full")
        assert int(full.headers["retry-after"]) >= 1
        assert metric(client, "worldcache_rejected_total", reason="queue_full") == 1
        assert metric(client, "worldcache_queue_depth", model="toy") == 1
        for rollout_id in accepted:
            client.delete(f"/v1/rollouts/{rollout_id}")
        assert client.post("/v1/rollouts", json=rollout_body()).status_code == 200


def test_a_failing_model_fails_one_rollout_and_tells_nothing_of_the_inside() -> None:
    def refuse(rows: Any) -> None:
        if any(row.condition[0] == 3 for row in rows):
            raise RuntimeError("/secret/path is broken")

    with serving(ToyWorldModel(before_evaluate=refuse)) as client:
        failed = client.post("/v1/rollouts", json=rollout_body(actions=["ATTACK"]))
        assert failed.status_code == 500
        assert failed.json()["error"]["code"] == "rollout_failed"
        assert "secret" not in failed.text
        assert client.get(failed.headers["location"]).json()["status"] == "failed"
        assert client.post("/v1/rollouts", json=rollout_body()).status_code == 200
        assert metric(client, "worldcache_rollouts_total", status="failed") == 1
