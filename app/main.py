"""The app factory. Nothing is read or started at import."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from anyio import to_thread
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

import worldcache
from app.artifacts import ArtifactStore, FileArtifacts
from app.audit import Auditor, PresetGuard
from app.auth import ApiKeys, AuthMiddleware
from app.catalogue import ModelSource, read_catalogue
from app.dependencies import Services
from app.device_memory import held_bytes, total_bytes
from app.dispatcher import InProcessDispatcher
from app.errors import install_error_handlers
from app.metrics import Metrics
from app.middleware import (
    BodyLimitMiddleware,
    HttpMetricsMiddleware,
    LastResortMiddleware,
    RequestIdMiddleware,
)
from app.models import ModelHost
from app.redis.backend import RedisBackend
from app.rollouts import RolloutService
from app.routes import health, models, playground, rollouts, session_socket, sessions, videos
from app.session_socket import SocketRegistry
from app.session_store import InMemorySessionStore
from app.sessions import SessionService
from app.settings import Settings
from app.store import InMemoryStore, Store
from app.tracing import TracingMiddleware, make_tracing
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
        InvalidInput: the settings name a model, a device or a folder that there is not.
    """
    metrics = Metrics(CollectorRegistry())
    for device in settings.devices:
        metrics.add_device(device, partial(held_bytes, device), partial(total_bytes, device))
    tracing = make_tracing(settings.otlp_endpoint)

    def observe(tick: Tick) -> None:
        metrics.ticked(tick)
        tracing.ticked(tick)

    dispatcher = InProcessDispatcher(
        settings.devices,
        limits=Limits(settings.max_batch, settings.max_active, settings.rollout_memory_bytes),
        max_queue=settings.max_queue,
        max_per_client=settings.max_per_client,
        retry_after=settings.retry_after_seconds,
        observer=observe,
    )
    host = ModelHost(
        read_catalogue(settings, models_by_name),
        dispatcher=dispatcher,
        metrics=metrics,
        memory_limit=settings.model_memory_bytes,
        wait_seconds=settings.model_wait_seconds,
    )
    files = FileArtifacts(Path(settings.artifact_dir)) if settings.artifact_dir else None
    redis = RedisBackend(settings, metrics, files) if settings.redis_url else None
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
        loading = asyncio.create_task(host.load_all())
        writing = asyncio.create_task(session_service.keep_written())
        sweeping = asyncio.create_task(session_service.keep_swept())
        try:
            yield
        finally:
            await auditor.close()
            sweeping.cancel()
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
    )
    app.state.services = Services(
        settings, metrics, dispatcher, host, store, service, session_service, sockets, redis, tracing
    )
    install_error_handlers(app)
    app.add_middleware(BodyLimitMiddleware, limit=settings.max_body_bytes)
    app.add_middleware(AuthMiddleware, keys=ApiKeys(settings.api_keys))
    app.add_middleware(LastResortMiddleware)
    app.add_middleware(HttpMetricsMiddleware, metrics=metrics)
    app.add_middleware(TracingMiddleware, tracing=tracing)
    app.add_middleware(RequestIdMiddleware)  # added last, so it comes first
    for module in (rollouts, sessions, session_socket, videos, models, health, playground):
        app.include_router(module.router)
    return app


def _memory_store(settings: Settings, artifacts: ArtifactStore | None) -> InMemoryStore:
    """The store of a server without Redis."""
    return InMemoryStore(
        max_rollouts=settings.store_max_rollouts,
        max_bytes=settings.store_max_bytes,
        ttl_seconds=settings.store_ttl_seconds,
        artifacts=artifacts,
    )
