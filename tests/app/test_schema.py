"""Answers are as the OpenAPI description has them, whatever is asked."""

from __future__ import annotations

import os
from typing import Any

import httpx
import pytest

from app.openapi import ALWAYS
from app.store import RolloutRecord
from app.views import rollout_json
from tests.drills.schema import as_markdown, drill_server, run
from worldcache.core import ModelInfo

REQUESTS = int(os.environ.get("DRILL_REQUESTS", "500"))


@pytest.mark.slow
def test_generated_requests_get_what_is_described() -> None:
    with drill_server() as client:
        findings = run(str(client.base_url).rstrip("/"), REQUESTS, seed=7)
    assert not findings.failures, "\n".join(findings.failures[:10])
    assert findings.requests >= REQUESTS
    succeeded = [label for label, counted in findings.statuses.items() if any(s < 300 for s in counted)]
    assert len(succeeded) > 0.8 * len(findings.statuses), "most operations must have been reached"
    assert "5xx other than 503 and 504: **0**" in as_markdown(findings, 7)


def test_an_answer_that_is_not_as_described_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(record: RolloutRecord, info: ModelInfo) -> dict[str, Any]:
        return {**rollout_json(record, info), "seed": "seven"}

    monkeypatch.setattr("app.routes.rollouts.rollout_json", wrong)
    with drill_server() as client:
        findings = run(str(client.base_url).rstrip("/"), 60, seed=7)
    assert any("GET /v1/rollouts:" in failure for failure in findings.failures)


def test_every_operation_of_the_api_describes_its_errors(client: httpx.Client) -> None:
    description = client.get("/openapi.json").json()
    assert "HTTPValidationError" not in description["components"]["schemas"]
    found = 0
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            where = f"{method} {path}"
            assert operation["responses"].keys() & {"200", "201"}, where
            if not path.startswith("/v1/"):
                continue
            found += 1
            assert {str(status) for status in ALWAYS} <= operation["responses"].keys(), where
            if operation.get("parameters") or "requestBody" in operation:
                assert "422" in operation["responses"], where
            for status, response in operation["responses"].items():
                assert response["description"], where
                if int(status) >= 400:
                    schema = response["content"]["application/json"]["schema"]
                    assert schema["$ref"].endswith("/ErrorAnswer"), where
    assert found > 25
