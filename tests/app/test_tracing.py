"""Traces, as a collector gets them over HTTP."""

from __future__ import annotations

import gzip
import itertools
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from app.tracing import make_tracing
from tests.app.conftest import rollout_body, serving
from worldcache.errors import InvalidInput


class Collector:
    """An OTLP collector on loopback."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                sent = ExportTraceServiceRequest.FromString(body)
                for resource in sent.resource_spans:
                    for scope in resource.scope_spans:
                        collector.spans += scope.spans
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/v1/traces"

    def one(self, name: str) -> Span:
        return next(span for span in self.spans if span.name == name)


@pytest.fixture
def collector() -> Iterator[Collector]:
    running = Collector()
    thread = threading.Thread(target=running.server.serve_forever, daemon=True)
    thread.start()
    yield running
    running.server.shutdown()
    running.server.server_close()
    thread.join(10)


def attributes(span: Span) -> dict[str, str | int | float]:
    kinds = {entry.key: entry.value for entry in span.attributes}
    return {key: getattr(value, str(value.WhichOneof("value"))) for key, value in kinds.items()}


def test_a_request_is_told_from_end_to_end(collector: Collector) -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with serving(otlp_endpoint=collector.url) as client:
        body = rollout_body(cache={"policy": "interval", "interval": 2}, actions=[1] * 8)
        rollout = client.post("/v1/rollouts", json=body, headers={"traceparent": parent}).json()
        client.get(rollout["artifacts"]["video"]["rgb"])
    request, root = collector.one("POST /v1/rollouts"), collector.one("rollout")
    assert request.trace_id.hex() == "0af7651916cd43dd8448eb211c80319c"
    assert request.parent_span_id.hex() == "b7ad6b7169203331"
    assert root.parent_span_id == request.span_id
    assert attributes(root) == {
        "rollout": rollout["id"],
        "model": "toy",
        "policy": "interval",
        "skip_ratio": 0.5,
        "status": "succeeded",
    }
    children = [span for span in collector.spans if span.parent_span_id == root.span_id]
    assert [span.name for span in children] == ["queue", "denoise", "decode", "denoise", "decode"]
    assert attributes(children[1]) == {"chunk": 0, "steps": 10, "full": 5}
    for before, after in itertools.pairwise(children):
        assert before.start_time_unix_nano <= before.end_time_unix_nano <= after.end_time_unix_nano
    ticks = [span for span in collector.spans if span.name == "tick"]
    assert len(ticks) == 10 and attributes(ticks[0]) == {"model": "toy", "rows": 1, "calls": 1}
    encode = collector.one("encode")
    assert attributes(encode) == {"modality": "rgb", "format": "mp4"}
    assert encode.parent_span_id == collector.one("GET /v1/rollouts/{rollout_id}/video").span_id


def test_without_an_endpoint_nothing_is_made() -> None:
    tracing = make_tracing("")
    assert not tracing.enabled
    with tracing.span("encode", modality="rgb"):
        pass
    tracing.close()


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(InvalidInput, match=r"worldcache\[tracing\]"):
        make_tracing("http://127.0.0.1:1/v1/traces")
