"""Is it up, is it ready, what does it measure?"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

import worldcache
from app.answers import Liveness, Readiness
from app.dependencies import AppServices

router = APIRouter(tags=["health"])
metrics_router = APIRouter(tags=["health"])


@router.get(
    "/livez",
    response_model=None,
    responses={
        200: {"model": Liveness},
        503: {"model": Liveness, "description": "An engine's thread has died; start the process again."},
    },
)
async def livez(services: AppServices) -> Response:
    """Whether the process can do its work; while it loads a model, or drains, it can."""
    alive = services.dispatcher.alive
    return JSONResponse({"status": "ok" if alive else "stopped"}, 200 if alive else 503)


@router.get(
    "/readyz",
    response_model=None,
    responses={
        200: {"model": Readiness},
        503: {"model": Readiness, "description": "Loading, about to stop, or broken."},
    },
)
async def readyz(services: AppServices) -> Response:
    """Whether rollouts are accepted; each check says what it waits for."""
    checks = {f"model:{hosted.id}": hosted.status for hosted in services.models.all()}
    checks["engine"] = "ok" if services.dispatcher.alive else "stopped"
    checks["admission"] = "draining" if services.rollouts.draining else "ok"
    if services.redis is not None:
        checks["redis"] = services.redis.status
    ready = (
        checks.get("redis", "ok") == "ok"
        and services.models.ready
        and checks["engine"] == checks["admission"] == "ok"
    )
    answer: dict[str, Any] = {"status": "ready" if ready else "not_ready", "checks": checks}
    return JSONResponse(answer, 200 if ready else 503, headers={} if ready else {"Retry-After": "2"})


@metrics_router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(services: AppServices) -> Response:
    """Prometheus metrics."""
    return Response(generate_latest(services.metrics.registry), media_type=CONTENT_TYPE_LATEST)


@router.get("/version")
async def version() -> dict[str, str]:
    """The version of the service."""
    return {"name": "worldcache", "version": worldcache.__version__}
