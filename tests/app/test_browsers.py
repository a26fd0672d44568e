"""What browsers are told: headers, origins, and pages that need nothing from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator

import httpx
import pytest
from pydantic import ValidationError

from app.settings import Settings
from tests.app.conftest import rollout_body, serving

FRIEND, STRANGER = "https://friend.example", "https://stranger.example"


@pytest.fixture(scope="module")
def open_client() -> Iterator[httpx.Client]:
    with serving(cors_origins=FRIEND, api_keys="alpha") as running:
        yield running


def preflight(client: httpx.Client, origin: str) -> httpx.Response:
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, content-type",
    }
    return client.options("/v1/rollouts", headers=headers)


@pytest.mark.parametrize(
    "path", ["/", "/docs", "/livez", "/v1/models", "/v1/nothing", "/openapi.json", "/metrics"]
)
def test_every_answer_has_security_headers(client: httpx.Client, path: str) -> None:
    headers = client.get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
    assert "unsafe-inline" not in policy.partition("script-src")[2].partition(";")[0]


def test_cors_is_closed_by_default(client: httpx.Client) -> None:
    assert preflight(client, FRIEND).status_code in (403, 405)
    response = client.get("/v1/models", headers={"Origin": FRIEND})
    assert (response.status_code, response.json()["error"]["code"]) == (403, "foreign_origin")
    for reply in (preflight(client, FRIEND), response, client.get("/livez", headers={"Origin": FRIEND})):
        assert not any(name.startswith("access-control") for name in reply.headers)


def test_a_page_of_another_origin_starts_nothing(client: httpx.Client) -> None:
    form = {"num_frames": "4"}  # a form needs no preflight
    for origin in (STRANGER, "null", "http://[", "http://127.0.0.1:1"):
        response = client.post(
            "/v1/videos", files={k: (None, v) for k, v in form.items()}, headers={"Origin": origin}
        )
        assert (response.status_code, response.json()["error"]["code"]) == (403, "foreign_origin")
    own = str(client.base_url).rstrip("/")
    assert client.post("/v1/rollouts", json=rollout_body(), headers={"Origin": own}).status_code == 200


def test_named_origins_may(open_client: httpx.Client) -> None:
    allowed = preflight(open_client, FRIEND)
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == FRIEND
    assert "access-control-allow-credentials" not in allowed.headers
    assert preflight(open_client, STRANGER).status_code == 400
    headers = {"Origin": FRIEND, "Authorization": "Bearer alpha"}
    response = open_client.get("/v1/models", headers=headers)
    assert (response.status_code, response.headers["access-control-allow-origin"]) == (200, FRIEND)
    assert "X-Rollout-ID" in response.headers["access-control-expose-headers"]
    refused = open_client.get("/v1/models", headers={"Origin": FRIEND})
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, FRIEND)
    strange = open_client.get("/v1/models", headers={**headers, "Origin": STRANGER})
    assert strange.status_code == 403 and "access-control-allow-origin" not in strange.headers


@pytest.mark.parametrize(
    "origin", ["*", "friend.example", "https://Friend.example", "https://friend.example/x", "ws://a"]
)
def test_origins_are_named_exactly(origin: str) -> None:
    with pytest.raises(ValidationError, match="an origin is a scheme and a host"):
        Settings(cors_origins=origin)


def test_the_page_of_the_api_needs_nothing_from_elsewhere(client: httpx.Client) -> None:
    page = client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "<script>" not in page.text and "style=" not in page.text
    files = re.findall(r'(?:src|href)="([^"#]+)"', page.text)
    assert "/docs/assets/swagger-ui-bundle.js" in files
    for path in files:
        assert path.startswith("/"), path
        assert client.get(path).status_code == 200, path
    for path in ("/docs/assets/../../auth.py", "/docs/assets/%2e%2e/__init__.py", "/docs/assets/none.js"):
        assert client.get(path).status_code == 404, path
    assert client.get("/redoc").status_code == 404
