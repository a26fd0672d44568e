"""No secret in logs, errors or metrics."""

from __future__ import annotations

import base64
import logging

import pytest
from websockets.exceptions import InvalidStatus

from app.serving import make_server
from tests.app.conftest import rollout_body, serving
from tests.app.sockets import driving

KEY, WRONG = "wc_very_secret_key", "wc_another_secret_key"


def subprotocol(key: str) -> str:
    return "bearer." + base64.urlsafe_b64encode(key.encode()).decode().rstrip("=")


def test_keys_are_in_no_log_answer_or_metric(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the most talkative level, with keys that open and keys that do not."""
    monkeypatch.setattr(
        "tests.app.conftest.make_server",
        lambda app, **options: make_server(app, **{**options, "log_level": "debug", "log_config": None}),
    )
    caplog.set_level(logging.DEBUG)
    told: list[str] = []
    headers = {"Authorization": f"Bearer {KEY}"}
    with serving(api_keys=KEY, log_level="debug") as client:
        session = {"model": "toy", "observation": {"start": "centre"}}
        path = "/v1/sessions/" + client.post("/v1/sessions", json=session, headers=headers).json()["id"]
        with driving(client, path, headers=headers):
            pass
        with driving(client, path, subprotocols=["worldcache", subprotocol(KEY)]):
            pass
        with pytest.raises(InvalidStatus) as caught:
            with driving(client, path, subprotocols=["worldcache", subprotocol(WRONG)]):
                pass
        told.append(str(caught.value.response.body))
        for key in (KEY, WRONG):
            response = client.post(
                "/v1/rollouts", json=rollout_body(model=3), headers={"Authorization": f"Bearer {key}"}
            )
            assert response.status_code in (401, 422)
            told += [response.text, str(response.headers)]
        told.append(client.get("/metrics").text)
    theirs = ("httpcore", "httpx", "websockets.client")  # the client of this test, in the same process
    logged = [record for record in caplog.records if not record.name.startswith(theirs)]
    told += [record.getMessage() for record in logged]
    assert any("authorization: ***" in text.lower() for text in told), "headers were logged, so it sees them"
    for key in (KEY, WRONG):
        for secret in (key, subprotocol(key)):
            assert not any(secret in text for text in told)
