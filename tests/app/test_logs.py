"""The log: objects for machines, ids of requests, and nothing that could be a key."""

from __future__ import annotations

import json
import logging

import pytest

from app.logs import (
    TEXT,
    JsonFormatter,
    RequestIdFilter,
    TextFormatter,
    configure_logging,
    hide_secrets,
    log_access,
    logging_as,
    redact,
)


def make_record(message: str, *arguments: object, **options: object) -> logging.LogRecord:
    record = logging.LogRecord("app.part", logging.WARNING, "part.py", 1, message, arguments, None)
    for name, value in options.items():
        setattr(record, name, value)
    RequestIdFilter().filter(record)
    return record


def test_a_record_is_one_json_object_with_the_id_of_its_request() -> None:
    with logging_as("req_1"):
        inside = make_record("two\nlines of %s", "text")
    outside = make_record("alone")
    line = JsonFormatter().format(inside)
    assert "\n" not in line
    entry = json.loads(line)
    assert entry.pop("time").endswith("Z")
    assert entry == {
        "level": "warning", "logger": "app.part", "message": "two\nlines of text", "request_id": "req_1",
    }  # fmt: skip
    assert "request_id" not in json.loads(JsonFormatter().format(outside))
    assert " [req_1] two" in TextFormatter(TEXT).format(inside)
    assert " [-] alone" in TextFormatter(TEXT).format(outside)


def test_an_exception_comes_along() -> None:
    try:
        raise ValueError("Authorization: Bearer sesame")
    except ValueError as error:
        record = make_record("failed", exc_info=(type(error), error, error.__traceback__))
    entry = json.loads(JsonFormatter().format(record))
    assert "Traceback" in entry["exception"] and "ValueError" in entry["exception"]
    assert "sesame" not in entry["exception"]
    assert "sesame" not in TextFormatter(TEXT).format(record)


@pytest.mark.parametrize(
    ("said", "logged"),
    [
        ("< Authorization: Bearer sesame", "< Authorization: ***"),
        ("{'authorization': 'Basic sesame'}", "{'authorization': ***"),
        ("< Sec-WebSocket-Protocol: worldcache, bearer.c2VzYW1l", "< Sec-WebSocket-Protocol: ***"),
        ("offered bearer.c2VzYW1l, worldcache", "offered bearer.***, worldcache"),
        ("no answer from redis://user:sesame@redis:6379/0", "no answer from redis://***@redis:6379/0"),
        ('"WebSocket /v1/x?key=sesame" [accepted]', '"WebSocket /v1/x?***" [accepted]'),
        ("< GET /v1/x?key=sesame HTTP/1.1", "< GET /v1/x?*** HTTP/1.1"),
        ("model doom is warm after 0.4 s", "model doom is warm after 0.4 s"),
        ("what is at http://127.0.0.1:8000/docs?", "what is at http://127.0.0.1:8000/docs?"),
    ],
)
def test_what_could_be_a_key_is_left_out(said: str, logged: str) -> None:
    assert redact(said) == logged


def test_a_filter_hides_secrets_from_everybodys_handlers() -> None:
    record = make_record("< %s: %s", "AUTHORIZATION", "Bearer sesame")
    assert hide_secrets(record) and record.getMessage() == "< AUTHORIZATION: ***"
    record = make_record("100% of %s", "Host")
    record = make_record("%s: bearer %s, %s", "100%", "sesame", "%s")
    assert hide_secrets(record) and record.getMessage() == "100%: bearer ***, %s"
    record = make_record("< %s: %s", "Host", "a")
    assert hide_secrets(record) and (record.msg, record.args) == ("< %s: %s", ("Host", "a"))


def test_a_request_is_one_line_whatever_its_path(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "app.access"):
        log_access("GET", "/v1/a\nb" + 300 * "c", "unmatched", 404, 0.0123, "127.0.0.1")
        log_access("GET", "/livez", "/livez", 200, 0.001, "127.0.0.1")
    request, probe = caplog.records
    assert (request.levelname, probe.levelname) == ("INFO", "DEBUG")
    entry = json.loads(JsonFormatter().format(request))
    assert entry["message"].startswith('127.0.0.1 "GET /v1/a%0Ab') and len(entry["path"]) == 256
    assert (entry["status"], entry["duration_ms"], entry["route"]) == (404, 12.3, "unmatched")


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_logging_is_configured(log_format: str, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("", "app", "worldcache", "uvicorn")
    loggers = [logging.getLogger(name) for name in names]
    before = [(logger, logger.level, list(logger.handlers)) for logger in loggers]
    try:
        configure_logging("info", log_format)  # type: ignore[arg-type]
        logging.getLogger("app.models").info("warm")
        logging.getLogger("app.models").debug("too quiet")
        logging.getLogger("elsewhere").info("not ours")
        logging.getLogger("elsewhere").warning("ours too")
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 2
        if log_format == "json":
            assert [json.loads(line)["message"] for line in lines] == ["warm", "ours too"]
    finally:
        logging.captureWarnings(False)
        for logger, level, handlers in before:
            logger.setLevel(level)
            logger.handlers = handlers
