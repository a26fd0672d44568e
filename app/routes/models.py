"""``/v1/models`` and ``/v1/policies``."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Response

from app.answers import ModelAnswer, ModelList, PolicyList
from app.dependencies import AppServices, FromCaller, check_operator
from app.hosted import describe_model
from app.openapi import answering
from worldcache.policies.registry import describe_policies

router = APIRouter(prefix="/v1", tags=["models"])


@router.get("/models", **answering(ModelList))
async def list_models(services: AppServices, caller: FromCaller) -> dict[str, Any]:
    """The models that the key may use, and how far they are."""
    return {"object": "list", "data": [describe_model(one) for one in services.models.all(caller.models)]}


@router.get("/models/{model_id}", **answering(ModelAnswer, 404, 422))
async def get_model(model_id: str, services: AppServices, caller: FromCaller) -> dict[str, Any]:
    """One model: actions, modalities, starts, presets, status."""
    return describe_model(services.models.find(model_id, caller.models))


@router.post(
    "/models/{model_id}/load",
    dependencies=[Depends(check_operator)],
    **answering(ModelAnswer, 404, 422, also={202: "It is being loaded."}),
)
async def load_model(model_id: str, services: AppServices, response: Response) -> dict[str, Any]:
    """Start loading a model: 202, or 200 if it is warm already. One that failed is tried again."""
    hosted = services.models.load(model_id)
    response.status_code = 200 if hosted.status == "warm" else 202
    return describe_model(hosted)


@router.post(
    "/models/{model_id}/unload",
    dependencies=[Depends(check_operator)],
    **answering(ModelAnswer, 404, 409, 422),
)
async def unload_model(model_id: str, services: AppServices) -> dict[str, Any]:
    """Unload a model that no rollout uses; it is loaded again when it is asked for."""
    return describe_model(await services.models.unload(model_id))


@router.get("/policies", **answering(PolicyList))
async def list_policies() -> dict[str, Any]:
    """Every cache policy with the JSON schema of its parameters."""
    return {"object": "list", "data": describe_policies()}
