"""Traces, if an operator wants them: where a request's time went, as OpenTelemetry spans.

Spans: the request, the rollout, its time in the line (``queue``), each of its chunks, with what it took to
decode, the making of files (``encode``), and the engine's ticks, which serve many rollouts at once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from opentelemetry import propagate, trace
from opentelemetry.trace import NoOpTracer, Span, SpanKind, Status, StatusCode, Tracer
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.store import RolloutRecord
from worldcache.core import ChunkFinished, RolloutEnded, RolloutEvent, RolloutStarted
from worldcache.engine.engine import Tick
from worldcache.errors import InvalidInput

logger = logging.getLogger(__name__)

SERVICE = "worldcache"
NANOSECONDS = 10**9


class Tracing:
    """Makes spans; of nothing but their names if nobody wants them.

    Args:
        tracer: makes them.
        close: sends what has not been sent yet; blocks.
    """

    def __init__(self, tracer: Tracer | None = None, close: Callable[[], None] = lambda: None) -> None:
        self.tracer: Tracer = tracer or NoOpTracer()
        self.enabled, self.close = tracer is not None, close

    def ticked(self, tick: Tick) -> None:
        """A tick of an engine has ended. May be called on any thread."""
        if self.enabled:
            attributes: dict[str, str | int] = {
                "model": tick.model,
                "rows": tick.rows,
                "calls": len(tick.calls),
            }
            end = time.time_ns()
            begun = end - int(tick.seconds * NANOSECONDS)
            self.tracer.start_span("tick", attributes=attributes, start_time=begun).end(end)

    def rollout(self, record: RolloutRecord) -> RolloutTrace:
        """The spans of a rollout that was accepted, within the current one."""
        return RolloutTrace(self.tracer, record)

    @contextmanager
    def span(self, name: str, **attributes: str | int | float) -> Iterator[None]:
        """A span around a block, within the current one."""
        with self.tracer.start_as_current_span(name, attributes=attributes):
            yield


class RolloutTrace:
    """One rollout's spans.

    Args:
        tracer: makes them.
        record: of the rollout.
    """

    def __init__(self, tracer: Tracer, record: RolloutRecord) -> None:
        self._tracer, self._record = tracer, record
        self._since = _nanoseconds(record.created_at)
        attributes = {"rollout": record.id, "model": record.model, "policy": record.policy}
        self._span = tracer.start_span("rollout", attributes=attributes, start_time=self._since)
        self._context = trace.set_span_in_context(self._span)

    def hear(self, event: RolloutEvent) -> None:
        """An event of the rollout; its last one ends the trace."""
        now = time.time_ns()
        if isinstance(event, RolloutStarted):
            self._child("queue", self._since, now)
            self._since = now
        elif isinstance(event, ChunkFinished):
            stats = event.stats
            attributes = {"chunk": stats.index, "steps": len(stats.decisions), "full": stats.steps_full}
            decoding = now - int(event.decode_seconds * NANOSECONDS)
            self._child("denoise", self._since, max(self._since, decoding), **attributes)
            self._child("decode", decoding, now, chunk=stats.index)
            self._since = now
        elif isinstance(event, RolloutEnded):
            self._span.set_attribute("skip_ratio", event.stats.skip_ratio)
            self._span.set_attribute("status", event.status)
            if event.status == "failed":
                self._span.set_status(Status(StatusCode.ERROR))
            self.end()

    def end(self) -> None:
        """Nothing more will be heard."""
        self._span.end()

    def _child(self, name: str, begun: int, ended: int, **attributes: int) -> None:
        span = self._tracer.start_span(name, self._context, attributes=attributes, start_time=begun)
        span.end(ended)


class TracingMiddleware:
    """A span around every request, within the client's if it sends a ``traceparent``."""

    def __init__(self, app: ASGIApp, tracing: Tracing) -> None:
        self.app, self._tracing = app, tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or not self._tracing.enabled:
            await self.app(scope, receive, send)
            return
        context = propagate.extract(dict(Headers(scope=scope)))
        method = str(scope.get("method", "WEBSOCKET"))
        with self._tracing.tracer.start_as_current_span(method, context, SpanKind.SERVER) as span:

            async def send_and_look(message: Message) -> None:
                if message["type"] == "http.response.start":
                    _describe(span, scope, method, message["status"])
                await send(message)

            await self.app(scope, receive, send_and_look)


def _describe(span: Span, scope: Mapping[str, Any], method: str, status: int) -> None:
    """Name a request's span by its route, which has bounds, not by its path."""
    route = getattr(scope.get("route"), "path", None)
    if route is not None:
        span.update_name(f"{method} {route}")
        span.set_attribute("http.route", route)
    span.set_attribute("http.request.method", method)
    span.set_attribute("http.response.status_code", status)
    if status >= 500:
        span.set_status(Status(StatusCode.ERROR))


def make_tracing(endpoint: str) -> Tracing:
    """Traces that are sent to ``endpoint``, an OTLP collector's URL; none at all if it is empty.

    Raises:
        InvalidInput: the packages that send them are not installed.
    """
    if not endpoint:
        return Tracing()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        message = "setting otlp_endpoint: traces need pip install 'worldcache[tracing]'"
        raise InvalidInput(message, param="otlp_endpoint") from None
    provider = TracerProvider(resource=Resource({"service.name": SERVICE}), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return Tracing(provider.get_tracer(SERVICE), provider.shutdown)


def _nanoseconds(seconds: float) -> int:
    return int(seconds * NANOSECONDS)
