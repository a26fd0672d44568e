"""The app factory. Nothing is read or started at import."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from anyio import to_thread
from fastapi import Depends, FastAPI
from fastapi.security import HTTPBearer
from prometheus_client import CollectorRegistry
from starlette.middleware.cors import CORSMiddleware

import worldcache
from app.artifacts import ArtifactStore, FileArtifacts, clear_strays
from app.audit import Auditor, PresetGuard
from app.auth import AuthMiddleware
from app.browsers import ASKED, METHODS, TOLD, OriginMiddleware, SecurityHeadersMiddleware
from app.catalogue import ModelSource, read_catalogue
from app.dependencies import Services
from app.device_memory import held_bytes, total_bytes
from app.dispatcher import InProcessDispatcher
from app.errors import install_error_handlers
from app.keys import KeyRing
from app.metrics import Metrics
from app.metrics_server import serving_metrics
from app.middleware import (
    BodyLimitMiddleware,
    HttpMetricsMiddleware,
    LastResortMiddleware,
    RequestIdMiddleware,
)
from app.models import ModelHost
from app.ratelimit import InMemoryRateLimiter, RateLimiter
from app.redis.backend import RedisBackend
from app.rollouts import RolloutService
from app.routes import docs, health, models, playground, rollouts, session_socket, sessions, videos
from app.session_store import InMemorySessionStore
from app.sessions import SessionService
from app.settings import Settings
from app.socket_registry import SocketRegistry
from app.store import InMemoryStore, Store
from app.tracing import Tracing, TracingMiddleware, make_tracing
from worldcache.engine.engine import Limits, Tick
from worldcache.models.base import WorldModel

ENGINE_STOP_SECONDS = 60.0
"""How long one backbone call may take to come back at shutdown."""


def create_app(
    settings: Settings, *, models_by_name: Mapping[str, WorldModel | ModelSource] | None = None
) -> FastAPI:
    """The service.

    Args:
        settings: the only configuration.
        models_by_name: models to serve instead of ``settings.models``, or where they come from.

    Raises:
        InvalidInput: the settings name a model, a device, a folder or a file of keys that there is not.
    """
    metrics = Metrics(CollectorRegistry())
    for device in settings.devices:
        metrics.add_device(device, partial(held_bytes, device), partial(total_bytes, device))
    tracing = make_tracing(settings.otlp_endpoint)

    def observe(tick: Tick) -> None:
        metrics.ticked(tick)
        tracing.ticked(tick)

    keys = KeyRing(settings.api_keys, Path(settings.api_keys_file) if settings.api_keys_file else None)
    dispatcher = InProcessDispatcher(
        settings.devices,
        limits=Limits(settings.max_batch, settings.max_active, settings.rollout_memory_bytes),
        max_queue=settings.max_queue,
        max_per_client=settings.max_per_client,
        retry_after=settings.retry_after_seconds,
        observer=observe,
        limit_of=keys.concurrency,
    )
    host = ModelHost(
        read_catalogue(settings, models_by_name),
        dispatcher=dispatcher,
        metrics=metrics,
        memory_limit=settings.model_memory_bytes,
        wait_seconds=settings.model_wait_seconds,
        most_waiters=settings.max_active + settings.max_queue,
    )
    files = FileArtifacts(Path(settings.artifact_dir)) if settings.artifact_dir else None
    redis = RedisBackend(settings, metrics, files, keys.concurrency) if settings.redis_url else None
    store: Store = redis.store if redis is not None else _memory_store(settings, files)
    guard = PresetGuard(
        settings.audit_floor_by_model,
        window=settings.audit_window,
        min_samples=settings.audit_min_samples,
    )
    auditor = Auditor(settings, guard, host, dispatcher, store, metrics)
    queue = None if redis is None else redis.queue
    service = RolloutService(settings, host, dispatcher, store, metrics, auditor, queue, tracing)
    places = settings.max_active * len(settings.devices)
    session_store = InMemorySessionStore(
        max_sessions=settings.max_sessions,
        max_per_client=settings.max_sessions_per_client,
        ttl_seconds=settings.session_ttl_seconds,
        retry_after=settings.retry_after_seconds,
        counted=metrics.sessions_changed,
    )
    snapshots = None if redis is None else redis.snapshots
    session_service = SessionService(settings, host, dispatcher, session_store, metrics, guard, snapshots)
    sockets = SocketRegistry()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        dispatcher.start()
        if redis is not None:
            await redis.start(service, lambda: places - dispatcher.live)
        elif files is not None:
            await clear_strays(files, settings.store_ttl_seconds)
        loading = asyncio.create_task(host.load_all())
        writing = asyncio.create_task(session_service.keep_written())
        sweeping = asyncio.create_task(session_store.keep_swept())
        reading = asyncio.create_task(keys.keep_fresh(sockets.shut_out))
        try:
            with serving_metrics(metrics.registry, settings.metrics_host, settings.metrics_port):
                yield
        finally:
            await auditor.close()
            sweeping.cancel()
            reading.cancel()
            await sockets.drain(0)
            await asyncio.gather(
                service.drain(settings.drain_seconds), session_service.drain(settings.drain_seconds)
            )
            writing.cancel()
            await session_service.hand_over()
            if redis is not None:
                await redis.close()
            loading.cancel()
            await to_thread.run_sync(dispatcher.close, ENGINE_STOP_SECONDS)
            await to_thread.run_sync(tracing.close)

    app = FastAPI(
        title="WorldCache",
        version=worldcache.__version__,
        description="Action-conditioned rollouts of diffusion world models, most of their steps predicted.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.services = Services(
        settings, metrics, dispatcher, host, store, service, session_service, sockets, redis, tracing
    )
    install_error_handlers(app)
    limiter = InMemoryRateLimiter() if redis is None else redis.limiter
    _add_middleware(app, settings, metrics, keys, limiter, tracing)
    bearer: list[Any] = [Depends(HTTPBearer(auto_error=False))] if keys.needed else []  # for the description
    for module in (rollouts, sessions, videos, models):
        app.include_router(module.router, dependencies=bearer)
    for router in (session_socket.router, health.router, docs.router, playground.router):
        app.include_router(router)
    if not settings.metrics_port:
        app.include_router(health.metrics_router)
    return app


def _memory_store(settings: Settings, artifacts: ArtifactStore | None) -> InMemoryStore:
    """The store of a server without Redis."""
    return InMemoryStore(
        max_rollouts=settings.store_max_rollouts,
        max_bytes=settings.store_max_bytes,
        ttl_seconds=settings.store_ttl_seconds,
        artifacts=artifacts,
    )


def _add_middleware(
    app: FastAPI,
    settings: Settings,
    metrics: Metrics,
    keys: KeyRing,
    limiter: RateLimiter,
    tracing: Tracing,
) -> None:
    """What happens around every request; what is added last comes first."""
    app.add_middleware(BodyLimitMiddleware, limit=settings.max_body_bytes, seconds=settings.body_seconds)
    app.add_middleware(
        AuthMiddleware,
        keys=keys,
        limiter=limiter,
        refused=lambda code: metrics.rejected.labels(code).inc(),
    )
    app.add_middleware(OriginMiddleware, allowed=settings.cors_origins)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=METHODS,
            allow_headers=ASKED,
            expose_headers=TOLD,
        )
    app.add_middleware(LastResortMiddleware)
    app.add_middleware(SecurityHeadersMiddleware)
    app.add_middleware(HttpMetricsMiddleware, metrics=metrics)
    app.add_middleware(TracingMiddleware, tracing=tracing)
    app.add_middleware(RequestIdMiddleware)
