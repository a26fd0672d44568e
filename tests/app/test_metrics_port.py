"""Metrics on a port of their own."""

from __future__ import annotations

import socket

import httpx
import pytest

from app.metrics_server import serving_metrics
from tests.app.conftest import rollout_body, serving
from worldcache.errors import InvalidInput


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_metrics_move_to_their_port_and_end_with_the_app() -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}/metrics"
    with serving(metrics_port=port) as client:
        client.post("/v1/rollouts", json=rollout_body())
        assert client.get("/metrics").status_code == 404
        assert "/metrics" not in client.get("/openapi.json").json()["paths"]
        text = httpx.get(url).text
        assert 'worldcache_model_ready{model="toy"} 1.0' in text
        assert 'worldcache_rollouts_total{model="toy"' in text
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)


def test_a_port_that_is_taken_is_named() -> None:
    from prometheus_client import CollectorRegistry

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InvalidInput, match=str(port)):
            with serving_metrics(CollectorRegistry(), "127.0.0.1", port):
                pass
