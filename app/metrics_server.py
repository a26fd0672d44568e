"""Metrics on a port of their own, so that the API's port need not show them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, start_http_server

from worldcache.errors import InvalidInput

logger = logging.getLogger(__name__)

STOP_SECONDS = 5.0


@contextmanager
def serving_metrics(registry: CollectorRegistry, host: str, port: int) -> Iterator[None]:
    """Answer with the metrics until the block ends, on a thread beside the event loop.

    Args:
        registry: of the metrics.
        host, port: to listen on; nothing is served if ``port`` is 0.

    Raises:
        InvalidInput: the port cannot be listened on.
    """
    if not port:
        yield
        return
    try:
        server, thread = start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        message = f"metrics cannot be served on {host}:{port}: {error.strerror or error}"
        raise InvalidInput(message, param="metrics_port") from error
    logger.info("metrics are on http://%s:%d/metrics", host, port)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join(STOP_SECONDS)
