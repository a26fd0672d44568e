"""``/v1/videos``, the OpenAI-style view of rollouts, against a running server."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from dataclasses import replace
from typing import Any

import av
import httpx
import numpy as np
import pytest
from PIL import Image

from app.videos import form_fields
from tests.app.conftest import rollout_body, serving
from tests.toy import ToyWorldModel
from worldcache.errors import InvalidInput

SLOW = {"num_frames": 200, "num_inference_steps": 50, "cache": "none"}


def picture(size: tuple[int, int] = (128, 96)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, (200, 10, 10)).save(stream, "PNG")
    return stream.getvalue()


DATA_URI = "data:image/png;base64," + base64.b64encode(picture()).decode()


def video_body(**changes: Any) -> dict[str, Any]:
    """A small valid request."""
    return {
        "model": "toy",
        "prompt": "strafe left",
        "num_frames": 6,
        "num_inference_steps": 10,
        "seed": 3,
        **changes,
    }


def form(**fields: Any) -> dict[str, Any]:
    """Arguments of a multipart request, files as (name, bytes)."""
    parts = [
        (key, value if isinstance(value, tuple) else (None, str(value))) for key, value in fields.items()
    ]
    return {"files": parts}


def decode(data: bytes) -> tuple[np.ndarray, float]:
    """Frames ``[F, H, W, 3]`` and frames a second of an mp4."""
    with av.open(io.BytesIO(data)) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
        return np.stack(frames), float(video.streams.video[0].average_rate)


def completed(client: httpx.Client, video_id: str) -> dict[str, Any]:
    """Poll until the video has ended."""
    for _ in range(3000):
        video = client.get(f"/v1/videos/{video_id}").json()
        if video["status"] not in ("queued", "in_progress"):
            return video
        time.sleep(0.01)
    raise AssertionError("the video did not end")


def make(client: httpx.Client, **changes: Any) -> dict[str, Any]:
    response = client.post("/v1/videos", json=video_body(**changes))
    assert response.status_code == 200, response.text
    return completed(client, response.json()["id"])


def test_a_video_is_polled_and_fetched(client: httpx.Client) -> None:
    began = client.post("/v1/videos", json=video_body(actions=["MOVE_LEFT", 0], cache="fast")).json()
    assert (began["object"], began["model"], began["error"]) == ("video", "toy", None)
    assert began["id"].startswith("video_")
    video = completed(client, began["id"])
    assert (video["status"], video["progress"]) == ("completed", 100)
    assert video["created_at"] <= video["completed_at"] == video["expires_at"] - 3600
    assert (video["size"], video["num_frames"], video["seed"]) == ("320x240", 6, 3)
    assert video["seconds"] == f"{6 / 17.5:g}"
    assert video["prompt"] == "strafe left"
    assert video["inference_time_s"] > 0
    assert video["stats"] == {"policy": "interval", "replaced_preset": None, "skip_ratio": 0.8}
    content = client.get(f"/v1/videos/{video['id']}/content")
    assert content.headers["content-type"] == "video/mp4"
    frames, fps = decode(content.content)
    assert (frames.shape, fps) == ((6, 240, 320, 3), 17.5)


def test_a_form_makes_the_same_video_as_json(client: httpx.Client) -> None:
    cache = {"policy": "interval", "interval": 3}
    actions = ["MOVE_LEFT", 2]
    fields = {**video_body(input_reference=("a.png", picture())), "fps": "8", "size": "64x48"}
    sent = form(**fields, actions=json.dumps(actions), cache=json.dumps(cache))
    response = client.post("/v1/videos/sync", **sent)
    assert response.status_code == 200, response.text
    body = video_body(fps=8, size="64x48", actions=actions, cache=cache)
    for reference in (DATA_URI, DATA_URI.partition(",")[2], {"image_url": DATA_URI}):
        same = client.post("/v1/videos/sync", json={**body, "input_reference": reference})
        assert same.content == response.content
    assert client.post("/v1/videos/sync", json=body | {"seed": 4}).content != response.content
    assert float(response.headers["x-skip-ratio"]) == 0.6
    assert decode(response.content)[1] == 8


def test_forms_may_use_brackets_and_bare_names(client: httpx.Client) -> None:
    expected = video_body(actions=["NOOP", 1], cache={"policy": "interval", "interval": 2})
    text = {key: str(value) for key, value in expected.items() if key not in ("actions", "cache")}
    brackets = [
        ("actions[]", "NOOP"),
        ("actions[]", "1"),
        ("cache[policy]", "interval"),
        ("cache[interval]", "2"),
    ]
    assert form_fields([*text.items(), *brackets]) == expected
    assert form_fields([("cache", "fast")]) == form_fields([("cache", '"fast"')]) == {"cache": "fast"}
    assert form_fields([("input_reference[image_url]", "1")]) == {"input_reference": {"image_url": "1"}}
    response = client.post("/v1/videos", **form(prompt="", num_frames=4, cache="none"))
    assert completed(client, response.json()["id"])["stats"]["policy"] == "none"


@pytest.mark.parametrize(
    ("changes", "frames", "fps"),
    [
        ({"num_frames": None, "seconds": "2", "fps": 5}, 10, 5),
        ({"num_frames": None, "seconds": 0.4}, 7, 17.5),
        ({"num_frames": 10, "seconds": 2, "fps": 5}, 10, 5),
        ({"num_frames": None, "actions": [1, 2, 3]}, 3, 17.5),
        ({"num_frames": None}, 70, 17.5),
    ],
    ids=str,
)
def test_the_horizon(client: httpx.Client, changes: dict[str, Any], frames: int, fps: float) -> None:
    response = client.post("/v1/videos/sync", json=video_body(num_inference_steps=2, **changes))
    assert response.status_code == 200, response.text
    pictures, rate = decode(response.content)
    assert (len(pictures), rate) == (frames, fps)


def test_actions_are_repeated_to_the_end_and_default_to_the_first(client: httpx.Client) -> None:
    def rgb(**changes: Any) -> bytes:
        video = make(client, **changes)
        npz = client.get(f"/v1/rollouts/{video['rollout_id']}/frames.npz").content
        return np.load(io.BytesIO(npz))["rgb"].tobytes()

    assert rgb(actions=["MOVE_LEFT"]) == rgb(actions=["MOVE_LEFT"] * 6)
    assert rgb() == rgb(actions=["NOOP"] * 6) != rgb(actions=["MOVE_LEFT"] * 6)


def test_a_size_is_kept_apart_from_the_rollouts_own_video(client: httpx.Client) -> None:
    video = make(client, size="128x96")
    assert video["size"] == "128x96"
    own = client.get(f"/v1/rollouts/{video['rollout_id']}/video").content
    assert decode(own)[0].shape[1:3] == (240, 320)
    content = client.get(f"/v1/videos/{video['id']}/content").content
    assert decode(content)[0].shape[1:3] == (96, 128)


def test_one_rollout_through_both_apis(client: httpx.Client) -> None:
    video = make(client, prompt="x" * 600)
    rollout = client.get("/v1/rollouts/ro_" + video["id"].removeprefix("video_")).json()
    assert rollout["id"] == video["rollout_id"]
    assert (rollout["status"], rollout["frames"], rollout["seed"]) == ("succeeded", 6, 3)
    assert rollout["metadata"] == {"prompt": "x" * 512}
    metadata = {"size": "tall", "prompt": "no"}
    other = client.post("/v1/rollouts", json=rollout_body(metadata=metadata)).json()["id"]
    seen = client.get("/v1/videos/video_" + other.removeprefix("ro_")).json()
    assert (seen["status"], seen["size"]) == ("completed", "320x240")
    assert client.delete(f"/v1/videos/{seen['id']}").json() == {
        "id": seen["id"],
        "object": "video.deleted",
        "deleted": True,
    }
    assert client.get(f"/v1/rollouts/{other}").status_code == 404
    gone = client.get(f"/v1/videos/{seen['id']}")
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "unknown_video")


def test_videos_are_listed_in_either_order() -> None:
    with serving() as client:
        made = [make(client, num_frames=1, num_inference_steps=1)["id"] for _ in range(3)]

        def ids(**params: Any) -> tuple[list[str], bool]:
            answer = client.get("/v1/videos", params=params).json()
            found = [video["id"] for video in answer["data"]]
            assert (answer["first_id"], answer["last_id"]) == (found[0], found[-1]) if found else (None, None)
            return found, answer["has_more"]

        assert ids() == (made[::-1], False)
        assert ids(order="asc") == (made, False)
        assert ids(limit=2) == (made[:0:-1], True)
        assert ids(limit=1, after=made[2]) == ([made[1]], True)
        assert ids(limit=2, order="asc", after=made[0]) == (made[1:], False)
        assert ids(after="video_nope") == ids(after="video_nope", order="asc") == ([], False)


def test_a_live_video_shows_its_progress_and_is_cancelled_by_its_removal() -> None:
    model = ToyWorldModel(delay=0.02)
    with serving(model, max_active=1) as client:
        first, second = (client.post("/v1/videos", json=video_body(**SLOW)).json()["id"] for _ in range(2))
        while not (video := client.get(f"/v1/videos/{first}").json())["progress"]:
            time.sleep(0.02)
        assert (video["status"], video["completed_at"], video["expires_at"]) == ("in_progress", None, None)
        assert 0 < video["progress"] < 100
        assert client.get(f"/v1/videos/{second}").json()["status"] == "queued"
        early = client.get(f"/v1/videos/{first}/content")
        assert (early.status_code, early.json()["error"]["code"]) == (409, "not_finished")
        for video_id in (second, first):
            assert client.delete(f"/v1/videos/{video_id}").json()["deleted"] is True
            assert client.get(f"/v1/videos/{video_id}").status_code == 404
        calls = len(model.batches)
        time.sleep(0.2)
        assert len(model.batches) == calls


def test_a_cancelled_rollout_is_a_failed_video() -> None:
    with serving(ToyWorldModel(delay=0.02)) as client:
        answers: list[httpx.Response] = []
        body = video_body(**SLOW)
        waiting = threading.Thread(target=lambda: answers.append(client.post("/v1/videos/sync", json=body)))
        waiting.start()
        while not (data := client.get("/v1/videos").json()["data"]):
            time.sleep(0.01)
        client.delete(f"/v1/rollouts/{data[0]['rollout_id']}")
        waiting.join(10)
        assert (answers[0].status_code, answers[0].json()["error"]["code"]) == (409, "rollout_cancelled")
        video = client.get(f"/v1/videos/{data[0]['id']}").json()
        assert (video["status"], video["error"]["code"]) == ("failed", "rollout_cancelled")
        assert video["progress"] < 100


def test_a_client_that_goes_away_cancels_a_synchronous_video() -> None:
    model = ToyWorldModel(delay=0.02)
    with serving(model) as client:
        with pytest.raises(httpx.ReadTimeout):
            client.post("/v1/videos/sync", json=video_body(**SLOW), timeout=httpx.Timeout(5, read=0.3))
        while client.get("/v1/videos").json()["data"][0]["status"] != "failed":
            time.sleep(0.02)
        calls = len(model.batches)
        time.sleep(0.2)
        assert len(model.batches) == calls


BAD_BODIES: list[tuple[dict[str, Any], int, str]] = [
    ({"model": "nope"}, 422, "model"),
    ({"surprise": 1}, 422, "surprise"),
    ({"prompt": 3}, 422, "prompt"),
    ({"prompt": "\ud800"}, 422, "prompt"),
    ({"prompt": "x" * 40_000}, 422, "prompt"),
    ({"num_frames": 10**400}, 422, "num_frames"),
    ({"fps": 1e-300}, 422, "fps"),
    ({"seconds": "soon"}, 422, "seconds"),
    ({"seconds": -1}, 422, "seconds"),
    ({"seconds": "inf"}, 422, "seconds"),
    ({"seconds": 9, "num_frames": 6}, 422, "seconds"),
    ({"seconds": 0.001, "num_frames": None}, 422, "seconds"),
    ({"seconds": 1e308, "num_frames": None}, 422, "seconds"),
    ({"num_frames": None, "fps": 200}, 422, "seconds"),
    ({"num_frames": 0}, 422, "num_frames"),
    ({"num_frames": 10**12}, 422, "num_frames"),
    ({"num_frames": 2.5}, 422, "num_frames"),
    ({"num_frames": None, "actions": [0] * 257}, 422, "actions"),
    ({"actions": [0] * 7}, 422, "actions"),
    ({"actions": []}, 422, "actions"),
    ({"actions": ["NOOP", "JUMP"]}, 422, "actions.1"),
    ({"fps": 0}, 422, "fps"),
    ({"size": "big"}, 422, "size"),
    ({"size": "64x49"}, 422, "size"),
    ({"size": "32x24"}, 422, "size"),
    ({"size": "128x48"}, 422, "size"),
    ({"size": "6400x4800"}, 422, "size"),
    ({"input_reference": 3}, 422, "input_reference"),
    ({"input_reference": "%%%"}, 422, "input_reference"),
    ({"input_reference": "https://example.org/a.png"}, 422, "input_reference"),
    ({"input_reference": "A" * 12_000_000}, 413, "input_reference"),
    ({"input_reference": {"file_id": "f"}}, 422, "input_reference.image_url"),
    ({"input_reference": {"image_url": "aGVsbG8="}}, 422, "input_reference"),
    ({"num_inference_steps": 201}, 422, "num_inference_steps"),
    ({"guidance_scale": 1e9}, 422, "guidance_scale"),
    ({"seed": -1}, 422, "seed"),
    ({"cache": "fastest"}, 422, "cache"),
    ({"cache": {"policy": "worldcache", "max_skip": 0}}, 422, "cache.max_skip"),
]


@pytest.mark.parametrize(("changes", "status", "param"), BAD_BODIES, ids=lambda v: str(v)[:60])
@pytest.mark.parametrize("path", ["/v1/videos", "/v1/videos/sync"])
def test_a_bad_field_is_named(
    client: httpx.Client, path: str, changes: dict[str, Any], status: int, param: str
) -> None:
    content = json.dumps(video_body(**changes))
    response = client.post(path, content=content, headers={"Content-Type": "application/json"})
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["param"] == param
    assert "observation" not in error["message"]


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"surprise": "1"}, 422, "surprise"),
        ({"num_frames": "six"}, 422, "num_frames"),
        ({"seed": "1.5"}, 422, "seed"),
        ({"seconds": ""}, 422, "seconds"),
        ({"fps": "fast"}, 422, "fps"),
        ({"actions": "MOVE_LEFT"}, 422, "actions"),
        ({"actions": '["JUMP"]'}, 422, "actions.0"),
        ({"actions": '{"a": 1}'}, 422, "actions"),
        ({"cache": "{"}, 422, "cache"),
        ({"cache": '{"policy": "nope"}'}, 422, "cache.policy"),
        ({"cache": ("c.json", b"{}")}, 422, "cache"),
        ({"input_reference": ("a.png", b"hello")}, 422, "input_reference"),
        ({"input_reference": ("a.png", b"x" * 9_000_000)}, 413, "input_reference"),
    ],
    ids=lambda v: str(v)[:60],
)
def test_a_bad_form_field_is_named(
    client: httpx.Client, fields: dict[str, Any], status: int, param: str
) -> None:
    response = client.post("/v1/videos", **form(**{"num_frames": 6, **fields}))
    assert response.status_code == status, response.text
    assert response.json()["error"]["param"] == param


def test_a_field_that_comes_twice_is_named(client: httpx.Client) -> None:
    for name, other in (
        ("seed", "seed"),
        ("actions", "actions[]"),
        ("cache", "cache[policy]"),
        ("cache[a]", "cache[a]"),
        ("cache[]", "cache[a]"),
        ("cache[a]", "cache[]"),
    ):
        for names in ((name, other), (other, name)):
            response = client.post("/v1/videos", files=[(field, (None, "[1]")) for field in names])
            assert response.status_code == 422
            assert response.json()["error"]["param"] == name.partition("[")[0]


@pytest.mark.parametrize(
    ("content", "content_type", "status", "code"),
    [
        (b"{", "application/json", 400, "invalid_json"),
        (b"\xff\xfe", "application/json", 400, "invalid_json"),
        (b"[" * 100_000, "application/json", 400, "invalid_json"),
        (b"[]", "application/json", 422, "invalid_value"),
        (b"", "application/json", 400, "invalid_json"),
        (b"hello", "text/plain", 415, "unsupported_media_type"),
        (b"hello", "multipart/form-data", 400, "bad_request"),
        (b"hello", "multipart/form-data; boundary=x", 400, "bad_request"),
    ],
)
def test_bodies_that_are_no_request(
    client: httpx.Client, content: bytes, content_type: str, status: int, code: str
) -> None:
    response = client.post("/v1/videos", content=content, headers={"Content-Type": content_type})
    assert (response.status_code, response.json()["error"]["code"]) == (status, code), response.text


@pytest.mark.parametrize(
    ("path", "status", "param"),
    [
        ("?limit=0", 422, "limit"),
        ("?order=up", 422, "order"),
        ("?status=queued", 422, "status"),
        ("/ro_nope", 404, None),
        ("/video_nope/content", 404, None),
    ],
)
def test_bad_paths_and_queries(client: httpx.Client, path: str, status: int, param: str | None) -> None:
    response = client.get("/v1/videos" + path)
    assert (response.status_code, response.json()["error"]["param"]) == (status, param)


def test_only_the_video_itself_can_be_fetched(client: httpx.Client) -> None:
    path = f"/v1/videos/{make(client)['id']}/content"
    assert client.get(path, params={"variant": "video"}).status_code == 200
    other = client.get(path, params={"variant": "thumbnail"})
    assert (other.status_code, other.json()["error"]["param"]) == (422, "variant")


def test_a_key_sees_its_own_videos_only() -> None:
    with serving(api_keys="alpha,beta") as client:
        alpha, beta = ({"Authorization": f"Bearer {key}"} for key in ("alpha", "beta"))
        assert client.post("/v1/videos", json=video_body()).status_code == 401
        path = "/v1/videos/" + client.post("/v1/videos", json=video_body(), headers=alpha).json()["id"]
        assert client.get(path, headers=alpha).status_code == 200
        for method, url in (("GET", path), ("GET", path + "/content"), ("DELETE", path)):
            assert client.request(method, url, headers=beta).status_code == 404
        assert client.get("/v1/videos", headers=beta).json()["data"] == []
        assert len(client.get("/v1/videos", headers=alpha).json()["data"]) == 1


class PickyWorldModel(ToyWorldModel):
    """Has no starts, and refuses every image once it sees it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.info = replace(self.info, starts=())

    def begin(self, observation: Any, conditioning: Any = None) -> Any:
        raise InvalidInput("observation.frames do not fit", param="observation.frames")


def test_what_the_model_refuses_is_told_of_the_image() -> None:
    with serving(PickyWorldModel()) as client:
        missing = client.post("/v1/videos", json=video_body()).json()["error"]
        assert (missing["code"], missing["param"]) == ("missing_field", "input_reference")
        body = video_body(input_reference=DATA_URI)
        refused = client.post("/v1/videos/sync", json=body)
        assert (refused.status_code, refused.json()["error"]["param"]) == (422, "input_reference")
        video = make(client, input_reference=DATA_URI)
        assert video["status"] == "failed"
        assert video["error"] == {"code": "invalid_value", "message": "input_reference do not fit"}
        assert client.get(f"/v1/videos/{video['id']}/content").status_code == 409
        text = client.get("/metrics").text
        assert 'worldcache_rejected_total{reason="missing_field"} 1.0' in text


def test_both_kinds_of_body_are_described(client: httpx.Client) -> None:
    operation = client.get("/openapi.json").json()["paths"]["/v1/videos"]["post"]
    content = operation["requestBody"]["content"]
    assert set(content) == {"application/json", "multipart/form-data"}
    assert "$ref" not in json.dumps(content)
    assert content["multipart/form-data"]["schema"]["properties"]["input_reference"]["format"] == "binary"
