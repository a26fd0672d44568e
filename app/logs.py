"""The service's log: lines for people or JSON objects for machines, with the id of the request.

What could be a key does not get into it, whoever logs it.
"""

from __future__ import annotations

import json
import logging
import logging.config
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Literal
from urllib.parse import quote

LogFormat = Literal["text", "json"]

TEXT = "%(asctime)s %(levelname)-7s %(name)s [%(request_id)s] %(message)s"
NO_REQUEST = "-"
MAX_PATH = 256
PROBES = frozenset({"/livez", "/readyz", "/metrics"})
"""Asked for every few seconds, so logged for ``debug`` only."""

ACCESS_FIELDS = ("method", "path", "route", "status", "duration_ms", "client")
"""What a line about a request holds beside its message."""

_SECRETS = (
    (
        re.compile(r"(?i)\b((?:proxy-)?authorization|cookie|sec-websocket-protocol)(['\"]?: ?)[^\n]*"),
        r"\1\2***",
    ),
    (re.compile(r"(?i)\b(bearer[ .])[^\s'\",]+"), r"\1***"),
    (re.compile(r"(\w://)[^\s/@]*@"), r"\1***@"),
    (re.compile(r"(\s/[^\s?\"]*)\?[^\s\"]*"), r"\1?***"),
)
"""Headers that hold keys, keys, passwords of addresses, and queries of paths; with what replaces them."""

_request_id: ContextVar[str] = ContextVar("request_id", default=NO_REQUEST)

_access = logging.getLogger("app.access")


@contextmanager
def logging_as(request_id: str) -> Iterator[None]:
    """Whatever is logged in this block, and by tasks that it starts, names the request."""
    token = _request_id.set(request_id)
    try:
        yield
    finally:
        _request_id.reset(token)


def redact(text: str) -> str:
    """The text without what could be a secret."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def log_access(method: str, path: str, route: str, status: int, seconds: float, client: str) -> None:
    """One line about a request that was answered.

    Args:
        path: as the client sent it; its query is left out by the caller.
        route: the template that it matched.
        client: the address.
    """
    shown = quote(path, safe="/:@+,;=~!$&'()*%")[:MAX_PATH]
    milliseconds = round(1000 * seconds, 1)
    values = (method, shown, route, status, milliseconds, client)
    _access.log(
        logging.DEBUG if route in PROBES else logging.INFO,
        '%s "%s %s" %d in %.1f ms',
        *(client, method, shown, status, milliseconds),
        extra=dict(zip(ACCESS_FIELDS, values, strict=True)),
    )


def hide_secrets(record: logging.LogRecord) -> bool:
    """A log filter, for loggers whose records may reach somebody else's handlers: redacts the message."""
    message = record.getMessage()
    if (redacted := redact(message)) != message:
        record.msg, record.args = redacted, None
    return True


class RequestIdFilter(logging.Filter):
    """Gives every record the id of the request for which it was logged."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = _request_id.get()
        return True


class TextFormatter(logging.Formatter):
    """A line a record, the traceback below it."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


class JsonFormatter(logging.Formatter):
    """One JSON object a record: time (UTC), level, logger, message and, where there are any, the rest."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        entry: dict[str, object] = {
            "time": moment.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redact(record.getMessage()),
        }
        request_id = getattr(record, "request_id", NO_REQUEST)
        if request_id != NO_REQUEST:
            entry["request_id"] = request_id
        entry |= {name: getattr(record, name) for name in ACCESS_FIELDS if hasattr(record, name)}
        if record.exc_info:
            entry["exception"] = redact(self.formatException(record.exc_info))
        return json.dumps(entry, default=str)


def configure_logging(level: str, log_format: LogFormat) -> None:
    """Send what the service, its server and Python's warnings say to standard error.

    Args:
        level: least severe messages of the service and its server; of other libraries, warnings.
        log_format: ``text`` or ``json``.
    """
    ours = {"level": level.upper()}
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "filters": {"request_id": {"()": RequestIdFilter}},
            "formatters": {"text": {"()": TextFormatter, "fmt": TEXT}, "json": {"()": JsonFormatter}},
            "handlers": {
                "stderr": {
                    "class": "logging.StreamHandler",
                    "formatter": log_format,
                    "filters": ["request_id"],
                }
            },
            "root": {"level": "WARNING", "handlers": ["stderr"]},
            "loggers": {name: ours for name in ("app", "worldcache", "uvicorn")},
        }
    )
    logging.captureWarnings(True)
