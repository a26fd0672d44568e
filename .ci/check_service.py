"""Run by .ci/run against the service started from the wheel: wait until it is ready, then use it.

check_service.py BASE_URL SERVER_PID
"""

import os
import sys
import time

import httpx

READY_SECONDS = 240
STEPS = 20
FRAMES = 8


def wait_until_ready(client: httpx.Client, server: int) -> None:
    deadline = time.monotonic() + READY_SECONDS
    answer = "nothing"
    while time.monotonic() < deadline:
        os.kill(server, 0)  # raises once the server is gone
        try:
            response = client.get("/readyz")
        except httpx.TransportError as error:
            answer = repr(error)
        else:
            if response.is_success:
                return
            answer = response.text
        time.sleep(0.5)
    raise SystemExit(f"/readyz did not say ready within {READY_SECONDS} s; it said: {answer}")


def check_rollouts(client: httpx.Client) -> None:
    body = {
        "model": "doom",
        "actions": [1] * FRAMES,
        "observation": {"start": client.get("/v1/models/doom").raise_for_status().json()["starts"][0]},
        "num_inference_steps": STEPS,
        "seed": 7,
        "cache": {"policy": "worldcache"},
    }
    response = client.post("/v1/rollouts", json=body)
    assert response.status_code == 200, response.text
    rollout = response.json()
    stats = rollout["stats"]
    decisions = "".join(chunk["decisions"] for chunk in stats["chunks"])
    assert rollout["status"] == "succeeded" and rollout["frames_done"] == FRAMES, rollout
    assert len(decisions) == stats["steps_total"] == STEPS * len(stats["chunks"]), stats
    assert 0 < stats["skip_ratio"] < 1, stats
    assert abs(stats["skip_ratio"] - decisions.count(".") / len(decisions)) < 1e-3, stats
    sys.stdout.write(f"rollout: {decisions}, skip ratio {stats['skip_ratio']:.3f}\n")

    video = client.post("/v1/rollouts", json=body, headers={"Accept": "video/mp4"})
    assert video.status_code == 200, video.text
    assert video.headers["content-type"].startswith("video/mp4"), video.headers
    assert video.content[4:8] == b"ftyp", video.content[:16]
    sys.stdout.write(f"video: {len(video.content)} bytes of mp4\n")


with httpx.Client(base_url=sys.argv[1], timeout=120) as http:
    wait_until_ready(http, int(sys.argv[2]))
    check_rollouts(http)
