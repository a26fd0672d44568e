"""Whatever is wrong with a request, the answer is a 4xx that names the field."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.app.conftest import rollout_body, serving


def encoded(image: Image.Image, format: str = "PNG") -> str:
    stream = io.BytesIO()
    image.save(stream, format)
    return base64.b64encode(stream.getvalue()).decode()


def bomb(width: int = 60_000, height: int = 60_000) -> str:
    """A few bytes that claim to be an image of 3.6 billion pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return base64.b64encode(data + chunk(b"IEND", b"")).decode()


def npy(array: np.ndarray) -> str:
    stream = io.BytesIO()
    np.save(stream, array)
    return base64.b64encode(stream.getvalue()).decode()


PICTURE = encoded(Image.new("RGB", (128, 96), (200, 10, 10)))

BAD_BODIES: list[tuple[dict[str, Any], int, str | None]] = [
    ({"model": "nope"}, 422, "model"),
    ({"model": None}, 422, "model"),
    ({"surprise": 1}, 422, "surprise"),
    ({"actions": []}, 422, "actions"),
    ({"actions": ["JUMP"]}, 422, "actions.0"),
    ({"actions": ["NOOP", 4]}, 422, "actions.1"),
    ({"actions": ["NOOP", {"a": 1}]}, 422, "actions.1"),
    ({"actions": [True]}, 422, "actions.0"),
    ({"actions": "NOOP"}, 422, "actions"),
    ({"actions": ["NOOP"] * 257}, 422, "actions"),
    ({"actions": ["\ud800"]}, 422, "actions.0"),
    ({"num_inference_steps": 0}, 422, "num_inference_steps"),
    ({"num_inference_steps": 201}, 422, "num_inference_steps"),
    ({"num_inference_steps": "many"}, 422, "num_inference_steps"),
    ({"guidance_scale": -1}, 422, "guidance_scale"),
    ({"guidance_scale": 1e9}, 422, "guidance_scale"),
    ({"seed": -1}, 422, "seed"),
    ({"seed": 2**63}, 422, "seed"),
    ({"cache": "fastest"}, 422, "cache"),
    ({"cache": {}}, 422, "cache.policy"),
    ({"cache": {"policy": "nope"}}, 422, "cache.policy"),
    ({"cache": {"policy": 3}}, 422, "cache.policy"),
    ({"cache": {"policy": "worldcache", "max_skip": 0}}, 422, "cache.max_skip"),
    ({"cache": {"policy": "worldcache", "maxskip": 3}}, 422, "cache.maxskip"),
    ({"cache": {"policy": "interval", "interval": "x"}}, 422, "cache.interval"),
    ({"output": {"format": "gif"}}, 422, "output.format"),
    ({"output": {"modalities": ["smell"]}}, 422, "output.modalities.0"),
    ({"output": {"fps": 0}}, 422, "output.fps"),
    ({"stream": "yes"}, 422, "stream"),
    ({"deadline_ms": 0}, 422, "deadline_ms"),
    ({"observation": {}}, 422, "observation"),
    ({"observation": {"start": "nowhere"}}, 422, "observation.start"),
    ({"observation": {"start": "centre", "frames": [PICTURE]}}, 422, "observation"),
    ({"observation": {"frames": []}}, 422, "observation.frames"),
    ({"observation": {"frames": ["%%%"]}}, 422, "observation.frames.0"),
    ({"observation": {"frames": [PICTURE, "aGVsbG8="]}}, 422, "observation.frames.1"),
    ({"observation": {"frames": [PICTURE[: len(PICTURE) // 8 * 4]]}}, 422, "observation.frames.0"),
    ({"observation": {"frames": ["http://example.org/a.png"]}}, 422, "observation.frames.0"),
    ({"observation": {"frames": ["data:image/png,abc"]}}, 422, "observation.frames.0"),
    ({"observation": {"frames": [bomb()]}}, 413, "observation.frames.0"),
    ({"observation": {"frames": [bomb(20_000, 10_000)]}}, 413, "observation.frames.0"),
    ({"observation": {"frames": ["A" * 12_000_000]}}, 413, "observation.frames.0"),
    ({"observation": {"frames": [PICTURE], "depth": [PICTURE, PICTURE]}}, 422, "observation"),
    ({"observation": {"frames": [PICTURE], "depth": [PICTURE]}}, 422, "observation.depth.0"),
    (
        {"observation": {"frames": [PICTURE], "depth": [encoded(Image.new("I;16", (8, 8), 500))]}},
        422,
        "observation.depth_scale",
    ),
    ({"observation": {"frames": [PICTURE], "depth": [npy(np.zeros(3))]}}, 422, "observation.depth.0"),
    (
        {"observation": {"frames": [PICTURE], "depth": [npy(np.full((8, 8), np.nan))]}},
        422,
        "observation.depth.0",
    ),
    (
        {"observation": {"frames": [PICTURE], "depth": [npy(np.array([[object()]], dtype=object))]}},
        422,
        "observation.depth.0",
    ),
    ({"metadata": {"k": 1}}, 422, "metadata.k"),
]


@pytest.mark.parametrize(("changes", "status", "param"), BAD_BODIES, ids=lambda v: str(v)[:60])
def test_a_bad_field_is_named(
    client: httpx.Client, changes: dict[str, Any], status: int, param: str | None
) -> None:
    content = json.dumps(rollout_body(**changes))  # ASCII: a lone surrogate reaches the server as an escape
    response = client.post("/v1/rollouts", content=content, headers={"Content-Type": "application/json"})
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["param"] == param
    assert error["message"] and error["code"]
    assert error["request_id"] == response.headers["x-request-id"]


def test_unknown_conditioning_is_named_in_the_message(client: httpx.Client) -> None:
    error = client.post("/v1/rollouts", json=rollout_body(conditioning={"a": 1})).json()["error"]
    assert (error["code"], error["param"]) == ("unknown_field", "conditioning.a")
    assert "'a'" in error["message"]


@pytest.mark.parametrize(
    ("content", "content_type", "status", "code"),
    [
        (b"{", "application/json", 400, "invalid_json"),
        (b"\xff\xfe", "application/json", 400, "invalid_json"),
        (b"[" * 100_000, "application/json", 400, "bad_request"),
        (b"hello", "text/plain", 415, "unsupported_media_type"),
        (b"[]", "application/json", 422, "invalid_value"),
        (b"", "application/json", 422, "missing_field"),
    ],
)
def test_bodies_that_are_no_object(
    client: httpx.Client, content: bytes, content_type: str, status: int, code: str
) -> None:
    response = client.post("/v1/rollouts", content=content, headers={"Content-Type": content_type})
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)


def test_a_body_that_is_too_large_never_reaches_a_route() -> None:
    with serving(max_body_bytes=2048) as client:
        big = rollout_body(metadata={f"k{i}": "x" * 500 for i in range(8)})
        response = client.post("/v1/rollouts", json=big)
        assert (response.status_code, response.json()["error"]["code"]) == (413, "body_too_large")

        def parts() -> Any:  # without a Content-Length
            yield from (b"x" * 1000 for _ in range(5))

        response = client.post("/v1/rollouts", content=parts())
        assert response.status_code == 413


@pytest.mark.parametrize(
    "observation",
    [
        {"frames": [PICTURE]},
        {"frames": ["data:image/png;base64," + PICTURE] * 6},
        {"frames": [encoded(Image.new("RGBA", (64, 48)), "WEBP")]},
        {"frames": [encoded(Image.new("L", (10, 10)), "JPEG")]},
        {
            "frames": [PICTURE],
            "depth": [encoded(Image.new("I;16", (80, 60), 500))],
            "depth_scale": 0.01,
        },
        {"frames": [PICTURE], "depth": [npy(np.ones((48, 64)))]},
    ],
)
def test_images_of_all_kinds_are_taken(client: httpx.Client, observation: dict[str, Any]) -> None:
    response = client.post("/v1/rollouts", json=rollout_body(observation=observation))
    assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("PUT", "/v1/rollouts", 405, "method_not_allowed"),
        ("GET", "/v1/rollouts/ro_nope", 404, "unknown_rollout"),
        ("GET", "/v1/models/nope", 404, "unknown_model"),
        ("GET", "/v1/rollouts?limit=0", 422, "invalid_value"),
        ("GET", "/v1/rollouts?what=1", 422, "unknown_field"),
    ],
)
def test_routes_answer_with_the_envelope(
    client: httpx.Client, method: str, path: str, status: int, code: str
) -> None:
    response = client.request(method, path)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)


def test_bad_artifact_queries(client: httpx.Client) -> None:
    base = "/v1/rollouts/" + client.post("/v1/rollouts", json=rollout_body()).json()["id"]
    for path, status, param in (
        ("/frames/6", 404, "index"),
        ("/frames/-1", 404, "index"),
        ("/frames/x", 422, "index"),
        ("/frames/0?modality=smell", 422, "modality"),
        ("/video?modality=smell", 422, "modality"),
        ("/video?format=gif", 422, "format"),
    ):
        response = client.get(base + path)
        assert (response.status_code, response.json()["error"]["param"]) == (status, param), path


def test_request_ids_are_taken_and_returned(client: httpx.Client) -> None:
    assert client.get("/livez", headers={"X-Request-ID": "abc-1"}).headers["x-request-id"] == "abc-1"
    long = client.get("/livez", headers={"X-Request-ID": "x" * 200}).headers["x-request-id"]
    assert long.startswith("req_")
