"""``/v1/rollouts``."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import JSONResponse

from app.dependencies import AppServices, Owner, OwnRollout, Services
from app.errors import ApiError
from app.media import MEDIA_TYPES
from app.rollouts import new_rollout_id
from app.schemas import ListQuery, RolloutBody
from app.store import RolloutRecord
from app.views import Artifacts, modalities_of, rollout_json
from worldcache.core import ModelInfo

router = APIRouter(prefix="/v1/rollouts", tags=["rollouts"])

IdempotencyKey = Annotated[str | None, Header(min_length=1, max_length=256)]


@router.post("")
async def create_rollout(
    body: RolloutBody,
    request: Request,
    services: AppServices,
    owner: Owner,
    prefer: Annotated[str | None, Header()] = None,
    accept: Annotated[str | None, Header()] = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Generate frames.

    Answers when the rollout has finished, with the rollout object, or with the video itself if
    `Accept: video/mp4` (or `image/webp`) was sent. With `Prefer: respond-async` it answers 202 at once.
    """
    if "text/event-stream" in (accept or "").lower():
        message = "streaming is not supported yet; poll with Prefer: respond-async"
        raise ApiError(422, "not_supported", message, param="stream")
    record = await _create_once(body, services, owner, idempotency_key)
    info = _info(services, record)
    location = {"Location": f"/v1/rollouts/{record.id}"}
    if prefer and "respond-async" in prefer.lower():
        services.rollouts.detach(record)
        headers = {**location, "Preference-Applied": "respond-async"}
        return JSONResponse(rollout_json(record, info), 202, headers=headers)
    await _wait(record, request, services, idempotency_key)
    if record.status == "cancelled":
        raise ApiError(409, "rollout_cancelled", f"rollout {record.id} was cancelled")
    if record.status == "failed":
        error = record.error or {}
        raise ApiError(
            422 if "param" in error else 500,
            error.get("code", "rollout_failed"),
            error.get("message", "the rollout failed"),
            param=error.get("param"),
        )
    artifacts = _artifacts(services, record)
    wanted = _wanted_video(accept)
    if wanted is not None:
        data = await artifacts.video(modalities_of(record, info)[0], wanted)
        skip_ratio = f"{record.stats.skip_ratio:.4f}" if record.stats else ""
        headers = {**location, "X-Rollout-ID": record.id, "X-Skip-Ratio": skip_ratio}
        return Response(data, media_type=MEDIA_TYPES[wanted], headers=headers)
    answer = rollout_json(record, info)
    if record.output.inline:
        answer["artifacts"]["inline"] = await artifacts.inline()
    return JSONResponse(answer, headers=location)


@router.get("")
async def list_rollouts(
    query: Annotated[ListQuery, Query()], services: AppServices, owner: Owner
) -> dict[str, Any]:
    """Rollouts, newest first."""
    records = await services.store.list(owner, limit=query.limit + 1, after=query.after, status=query.status)
    page = records[: query.limit]
    return {
        "object": "list",
        "data": [rollout_json(record, _info(services, record)) for record in page],
        "first_id": page[0].id if page else None,
        "last_id": page[-1].id if page else None,
        "has_more": len(records) > len(page),
    }


@router.get("/{rollout_id}")
async def get_rollout(record: OwnRollout, services: AppServices) -> dict[str, Any]:
    """One rollout, live or finished."""
    answer = rollout_json(record, _info(services, record))
    if record.output.inline and record.status == "succeeded":
        answer["artifacts"]["inline"] = await _artifacts(services, record).inline()
    return answer


@router.delete("/{rollout_id}")
async def delete_rollout(record: OwnRollout, services: AppServices) -> dict[str, Any]:
    """Cancel a live rollout; remove a finished one."""
    if record.live:
        await services.rollouts.cancel(record)
        return rollout_json(record, _info(services, record))
    await services.store.remove(record.id)
    return {"id": record.id, "object": "rollout", "deleted": True}


@router.get("/{rollout_id}/video")
async def get_video(
    record: OwnRollout,
    services: AppServices,
    modality: str | None = None,
    format: Literal["mp4", "webp"] | None = None,
) -> Response:
    """The rollout as a video of one modality."""
    asked = record.output.format
    chosen = format or ("webp" if asked == "webp" else "mp4")
    name = modality or modalities_of(record, _info(services, record))[0]
    data = await _artifacts(services, record).video(name, chosen)
    return Response(data, media_type=MEDIA_TYPES[chosen])


@router.get("/{rollout_id}/frames/{index}")
async def get_frame(
    record: OwnRollout,
    services: AppServices,
    index: int,
    modality: str | None = None,
    format: Literal["png", "jpeg"] = "png",
) -> Response:
    """One frame at its own size; depth as PNG has 16 bits, `X-Depth-Scale` says what a count is."""
    info = _info(services, record)
    name = modality or modalities_of(record, info)[0]
    data = await _artifacts(services, record).picture(index, name, format)
    headers = {}
    chosen = info.modality(name)
    if chosen.channels == 1 and format == "png":
        headers["X-Depth-Scale"] = f"{chosen.high / 65535:.9g}"
    return Response(data, media_type=MEDIA_TYPES[format], headers=headers)


@router.get("/{rollout_id}/frames.npz")
async def get_npz(record: OwnRollout, services: AppServices) -> Response:
    """All frames as arrays, one per modality."""
    data = await _artifacts(services, record).npz()
    headers = {"Content-Disposition": f'attachment; filename="{record.id}.npz"'}
    return Response(data, media_type=MEDIA_TYPES["npz"], headers=headers)


def _info(services: Services, record: RolloutRecord) -> ModelInfo:
    return services.models.info(record.model)


def _artifacts(services: Services, record: RolloutRecord) -> Artifacts:
    return Artifacts(services.store, record, _info(services, record), services.settings.video_min_height)


def _wanted_video(accept: str | None) -> str | None:
    """The video format that an Accept header prefers to JSON."""
    for part in (accept or "").split(","):
        kind = part.partition(";")[0].strip().lower()
        for name in ("mp4", "webp"):
            if kind == MEDIA_TYPES[name]:
                return name
        if kind in ("application/json", "*/*"):
            return None
    return None


async def _create_once(body: RolloutBody, services: Services, owner: str, key: str | None) -> RolloutRecord:
    """A new rollout, or the one that an idempotency key already stands for."""
    if key is None:
        return await services.rollouts.create(body, owner)
    canonical = json.dumps(body.model_dump(), sort_keys=True).encode()
    digest = hashlib.sha256(canonical).hexdigest()
    rollout_id = new_rollout_id()
    known_digest, known_id = await services.store.claim_key(owner, key, digest, rollout_id)
    if known_digest != digest:
        message = "this Idempotency-Key was used with another body; use a new key"
        raise ApiError(409, "idempotency_key_reused", message, param="Idempotency-Key")
    if known_id == rollout_id:
        try:
            return await services.rollouts.create(body, owner, rollout_id)
        except Exception:
            await services.store.release_key(owner, key)
            raise
    for _ in range(100):
        record = await services.store.get(known_id)
        if record is not None:
            return record
        await asyncio.sleep(0.02)
    raise ApiError(409, "idempotency_key_in_use", "a request with this key is being accepted; try again")


async def _wait(record: RolloutRecord, request: Request, services: Services, key: str | None) -> None:
    """Wait for the end; the last client that goes away takes a synchronous rollout with it.

    Its idempotency key is free again first, so that a retry makes a new rollout.
    """
    finished = asyncio.create_task(services.rollouts.wait(record))
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({finished, gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        finished.cancel()
        await asyncio.wait({finished})
        if services.rollouts.abandoned(record):
            if key is not None:
                await services.store.release_key(record.owner, key)
            await services.rollouts.cancel(record)
    if record.live:
        raise ApiError(409, "client_closed_request", "the client closed the connection")


async def _disconnected(request: Request) -> None:
    """Return when the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
