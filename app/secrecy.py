"""Keeps secrets out of logs."""

from __future__ import annotations

import logging

SECRET_HEADERS = frozenset({"authorization", "cookie", "proxy-authorization", "sec-websocket-protocol"})
"""Headers that may hold a key; the last one is how a browser presents it for a WebSocket."""

HIDDEN = "[hidden]"


def hide_headers(record: logging.LogRecord) -> bool:
    """A log filter: the WebSocket library writes down every header at level debug, as name and value."""
    arguments = record.args
    if isinstance(arguments, tuple) and len(arguments) == 2 and str(arguments[0]).lower() in SECRET_HEADERS:
        record.args = (arguments[0], HIDDEN)
    return True
