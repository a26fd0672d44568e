"""Patience with a server that is busy or gone, against scripted answers."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import pytest

from tests.client.conftest import FIELDS, Hourglass, Kind
from worldcache.client import (
    ApiError,
    BadRequest,
    ClientError,
    Conflict,
    ConnectionFailed,
    DeadlineError,
    DeadlineUnreachable,
    InvalidInput,
    NotFound,
    RateLimited,
    Retries,
    ServerBusy,
    ServerError,
    Unauthorized,
    UnexpectedAnswer,
)
from worldcache.client.errors import DeadlineExceeded, RolloutError
from worldcache.client.retries import Backoff, read_retry_after

ROLLOUT = {
    "id": "ro_1",
    "object": "rollout",
    "status": "succeeded",
    "model": "toy",
    "created_at": 0,
    "seed": 3,
    "frames": 6,
    "frames_done": 6,
    "stats": {"policy": "none", "novelty": 1},
    "novelty": {"a": 1},
}
DONE = httpx.Response(200, json=ROLLOUT)
LOST = httpx.ReadError("reset by peer")


def refusal(status: int, code: str = "some_code", **headers: str) -> httpx.Response:
    error = {"code": code, "message": "no; do this", "param": "seed", "request_id": "req_1"}
    return httpx.Response(status, json={"error": error}, headers=headers)


class Script:
    """Answers requests one after the other; the last answer for ever."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self._answers: Iterator[Any] = iter(answers)
        self._last: Any = None
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        self._last = answer = next(self._answers, self._last)
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)


def connect(kind: Kind, script: Script, hourglass: Hourglass, **options: Any) -> Any:
    return kind.connect(transport=httpx.MockTransport(script), hourglass=hourglass, **options)


def test_a_creation_is_repeated_with_the_same_key_and_body(kind: Kind) -> None:
    script, hourglass = Script(LOST, refusal(503), httpx.ConnectError("refused"), DONE), Hourglass()
    with connect(kind, script, hourglass) as client:
        assert client.rollouts.create(**FIELDS).id == "ro_1"
        client.rollouts.create(**FIELDS)
        client.rollouts.create(**FIELDS, idempotency_key="mine")
    keys = [request.headers["Idempotency-Key"] for request in script.requests]
    assert len(set(keys[:4])) == 1 and len(set(keys)) == 3 and keys[-1] == "mine"
    assert len({request.content for request in script.requests}) == 1
    assert hourglass.pauses == [0.5, 1.0, 2.0]


def test_retry_after_is_waited_for_at_least(kind: Kind) -> None:
    script = Script(refusal(503, **{"Retry-After": "7"}), refusal(429, **{"Retry-After": "3"}), DONE)
    hourglass = Hourglass()
    with connect(kind, script, hourglass) as client:
        client.rollouts.create(**FIELDS)
    assert hourglass.pauses == [7.5, 4.0]


def test_what_would_take_too_long_is_not_waited_for(kind: Kind) -> None:
    script, hourglass = Script(refusal(503, "model_failed", **{"Retry-After": "60"})), Hourglass()
    with connect(kind, script, hourglass) as client, pytest.raises(ServerBusy) as caught:
        client.rollouts.create(**FIELDS)
    assert (caught.value.retry_after, hourglass.pauses) == (60.0, [])


def test_patience_ends(kind: Kind) -> None:
    script, hourglass = Script(LOST), Hourglass()
    with connect(kind, script, hourglass) as client, pytest.raises(ConnectionFailed) as caught:
        client.models.list()
    assert hourglass.pauses == [0.5, 1.0, 2.0, 4.0, 8.0]
    assert "GET /v1/models: reset by peer" in str(caught.value)
    assert isinstance(caught.value.__cause__, httpx.ReadError)
    hourglass.pauses.clear()
    patient = Retries(count=100, first_delay=1, longest_delay=4, budget=20)
    with connect(kind, script, hourglass, retries=patient) as client, pytest.raises(ConnectionFailed):
        client.models.list()
    assert hourglass.pauses == [1, 2, 4, 4, 4, 4]
    hourglass.pauses.clear()
    with connect(kind, script, hourglass, retries=1) as client, pytest.raises(ConnectionFailed):
        client.models.list()
    assert hourglass.pauses == [0.5]


def test_a_deadline_ends_patience_as_well(kind: Kind) -> None:
    script, hourglass = Script(refusal(503)), Hourglass()
    with connect(kind, script, hourglass) as client, pytest.raises(ServerBusy):
        client.rollouts.create(**FIELDS, deadline_ms=2000)
    assert hourglass.pauses == [0.5, 1.0]


@pytest.mark.parametrize("call", [("models", "load"), ("models", "unload"), ("rollouts", "delete")])
def test_what_is_not_safe_to_repeat_is_not_repeated(kind: Kind, call: tuple[str, str]) -> None:
    for answer, error in ((LOST, ConnectionFailed), (refusal(503), ServerBusy)):
        script, hourglass = Script(answer), Hourglass()
        with connect(kind, script, hourglass) as client, pytest.raises(error):
            getattr(getattr(client, call[0]), call[1])("x")
        assert (len(script.requests), hourglass.pauses) == (1, [])


def test_silence_ends_a_wait_and_nothing_else(kind: Kind) -> None:
    silence = httpx.ReadTimeout("")
    script, hourglass = Script(silence), Hourglass()
    with connect(kind, script, hourglass) as client:
        with pytest.raises(ConnectionFailed, match="wait=False"):
            client.rollouts.create(**FIELDS)
        assert len(script.requests) == 1
    script = Script(silence, DONE)
    with connect(kind, script, hourglass) as client:
        assert client.rollouts.create(**FIELDS, wait=False).id == "ro_1"
    assert [request.headers["Prefer"] for request in script.requests] == ["respond-async"] * 2


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (400, "invalid_json", BadRequest),
        (401, "unauthorized", Unauthorized),
        (404, "unknown_model", NotFound),
        (409, "not_finished", Conflict),
        (410, "expired", NotFound),
        (413, "body_too_large", BadRequest),
        (418, "teapot", ApiError),
        (422, "invalid_value", BadRequest),
        (429, "too_many_rollouts", RateLimited),
        (500, "internal_error", ServerError),
        (503, "queue_full", ServerBusy),
        (504, "deadline_unreachable", DeadlineUnreachable),
        (504, "gateway", ServerError),
    ],
)
def test_refusals_have_types(kind: Kind, status: int, code: str, error: type[ApiError]) -> None:
    script = Script(refusal(status, code))
    with connect(kind, script, Hourglass(), retries=0) as client, pytest.raises(error) as caught:
        client.rollouts.create(**FIELDS)
    found = caught.value
    assert type(found) is error
    assert (found.status, found.code, found.message) == (status, code, "no; do this")
    assert (found.param, found.request_id) == ("seed", "req_1")
    assert isinstance(found, DeadlineError) == (code == "deadline_unreachable")
    assert len(script.requests) == 1


def test_the_tree_of_errors() -> None:
    assert issubclass(DeadlineExceeded, RolloutError) and issubclass(DeadlineExceeded, DeadlineError)
    assert issubclass(ConnectionFailed, ClientError) and not issubclass(RolloutError, ApiError)


@pytest.mark.parametrize("content", [b"<html>bad gateway</html>", b'{"error": "text"}', b"[]", b"\xff"])
def test_a_proxys_refusal_is_shown_as_it_is(kind: Kind, content: bytes) -> None:
    script = Script(httpx.Response(502, content=content, headers={"X-Request-ID": "req_2"}))
    with connect(kind, script, Hourglass()) as client, pytest.raises(ServerError) as caught:
        client.rollouts.get("ro_1")
    assert (caught.value.code, caught.value.request_id) == ("http_502", "req_2")
    assert caught.value.message == content.decode("utf-8", "replace")


def test_other_answers_are_no_rollouts(kind: Kind) -> None:
    answers: Sequence[Any] = ({"id": "ro_1"}, [], "text")
    for answer in answers:
        with connect(kind, Script(httpx.Response(200, json=answer)), Hourglass()) as client:
            for call in (client.rollouts.get, client.models.get):
                with pytest.raises(UnexpectedAnswer):
                    call("x")
            with pytest.raises(UnexpectedAnswer):
                list(client.rollouts.list())
    with connect(kind, Script(httpx.Response(200, text="<html>")), Hourglass()) as client:
        with pytest.raises(UnexpectedAnswer, match="<html>"):
            client.policies.list()


def test_new_fields_are_kept(kind: Kind) -> None:
    with connect(kind, Script(DONE), Hourglass()) as client:
        rollout = client.rollouts.get("ro_1")
        assert (rollout.novelty, rollout.stats.novelty, rollout.num_frames) == ({"a": 1}, 1, 6)


def test_requests_carry_what_they_should(kind: Kind) -> None:
    script = Script(DONE)
    transport = httpx.MockTransport(script)
    http = httpx.AsyncClient(transport=transport) if kind.asynchronous else httpx.Client(transport=transport)
    for _ in range(2):  # closing the client leaves what it was given open
        with kind.connect("https://host/prefix/", http=http, api_key="secret", timeout=5) as client:
            client.rollouts.get("a/../b?c")
    request = script.requests[-1]
    assert str(request.url) == "https://host/prefix/v1/rollouts/a%2F..%2Fb%3Fc"
    assert request.headers["Authorization"] == "Bearer secret"
    assert request.headers["User-Agent"].startswith("worldcache-client/")
    assert request.extensions["timeout"] == {"connect": 5, "read": 5, "write": 5, "pool": 5}
    assert not http.is_closed


@pytest.mark.parametrize("url", ["", "server:80", "ftp://server", "http://", "http://a:b"])
def test_a_bad_url_is_refused_at_once(kind: Kind, url: str) -> None:
    with pytest.raises(InvalidInput, match="base_url"):
        kind.connect(url)


def test_bad_keys_are_refused_and_not_shown(kind: Kind) -> None:
    with pytest.raises(InvalidInput) as caught:
        kind.connect(api_key="hush\n")
    assert "hush" not in str(caught.value)
    with kind.connect() as client, pytest.raises(InvalidInput, match="idempotency_key"):
        client.rollouts.create(**FIELDS, idempotency_key="\u00e9")


def test_a_rollout_that_ended_badly_is_found_by_its_location(kind: Kind) -> None:
    failed = {**ROLLOUT, "status": "failed", "error": {"code": "odd", "message": "m"}}
    script = Script(
        refusal(500, "odd", Location="/v1/rollouts/ro_1"), httpx.Response(200, content=json.dumps(failed))
    )
    with connect(kind, script, Hourglass()) as client, pytest.raises(RolloutError) as caught:
        client.rollouts.create(**FIELDS)
    assert caught.value.rollout is not None
    assert (caught.value.code, caught.value.rollout.status) == ("odd", "failed")


def test_retry_after_is_seconds_or_a_date() -> None:
    assert read_retry_after("12") == 12.0
    assert read_retry_after(None) is read_retry_after("soon") is read_retry_after("-3") is None
    ahead = read_retry_after(format_datetime(datetime.now(UTC) + timedelta(seconds=600), usegmt=True))
    assert ahead is not None and 500 < ahead <= 600
    assert read_retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0


def test_delays_grow_and_are_spread() -> None:
    draw = random.Random(0).random
    backoff = Backoff(Retries(count=9, first_delay=1, longest_delay=8, budget=1e9), lambda: 0.0, draw)
    delays = [backoff.next_delay() for _ in range(9)]
    for delay, longest in zip(delays, (1, 2, 4, 8, 8, 8, 8, 8, 8), strict=True):
        assert delay is not None and longest / 2 <= delay <= longest
    assert len(set(delays)) == 9
    assert backoff.next_delay() is None
    backoff.reset()
    assert backoff.next_delay() is not None


def test_patience_is_not_negative() -> None:
    with pytest.raises(InvalidInput):
        Retries(count=-1)
