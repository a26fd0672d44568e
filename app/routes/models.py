"""``/v1/models`` and ``/v1/policies``."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response

from app.dependencies import AppServices
from app.hosted import describe_model
from worldcache.policies.registry import describe_policies

router = APIRouter(prefix="/v1", tags=["models"])


@router.get("/models")
async def list_models(services: AppServices) -> dict[str, Any]:
    """The models of this server, and how far they are."""
    return {"object": "list", "data": [describe_model(hosted) for hosted in services.models.all()]}


@router.get("/models/{model_id}")
async def get_model(model_id: str, services: AppServices) -> dict[str, Any]:
    """One model: actions, modalities, starts, presets, status."""
    return describe_model(services.models.find(model_id))


@router.post("/models/{model_id}/load")
async def load_model(model_id: str, services: AppServices, response: Response) -> dict[str, Any]:
    """Start loading a model: 202, or 200 if it is warm already. One that failed is tried again."""
    hosted = services.models.load(model_id)
    response.status_code = 200 if hosted.status == "warm" else 202
    return describe_model(hosted)


@router.post("/models/{model_id}/unload")
async def unload_model(model_id: str, services: AppServices) -> dict[str, Any]:
    """Unload a model that no rollout uses; it is loaded again when it is asked for."""
    return describe_model(await services.models.unload(model_id))


@router.get("/policies")
async def list_policies() -> dict[str, Any]:
    """Every cache policy with the JSON schema of its parameters."""
    return {"object": "list", "data": describe_policies()}
