"""``/v1/rollouts``."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import JSONResponse

from app.answers import Deleted, RolloutAnswer, RolloutList
from app.auth import Caller
from app.dependencies import AppServices, FromCaller, Owner, OwnRollout, Services
from app.errors import NO_HEADERS, ApiError, request_id_of
from app.media import MEDIA_TYPES
from app.openapi import BODY, answering
from app.rollouts import new_rollout_id
from app.schemas import ListQuery, RolloutBody
from app.store import RolloutRecord
from app.streaming import EVENT_STREAM, EventStreamResponse, RolloutEvents, first_event_after
from app.views import Artifacts, count_scale, pictures_of, rollout_error, rollout_json
from app.waiting import attending, wait_for_end
from worldcache.core import ModelInfo

TWIN_SECONDS = 2.0
"""How long the acceptance of a request takes at most once its model is there."""

router = APIRouter(prefix="/v1/rollouts", tags=["rollouts"])

IdempotencyKey = Annotated[str | None, Header(min_length=1, max_length=256)]


@router.post(
    "",
    **answering(
        RolloutAnswer,
        *BODY,
        409,
        500,
        504,
        also={202: "Accepted; it goes on by itself."},
        media=(MEDIA_TYPES["mp4"], MEDIA_TYPES["webp"], EVENT_STREAM),
    ),
)
async def create_rollout(
    body: RolloutBody,
    request: Request,
    services: AppServices,
    caller: FromCaller,
    prefer: Annotated[str | None, Header()] = None,
    accept: Annotated[str | None, Header()] = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Generate frames.

    Answers when the rollout has finished, with the rollout object, or with the video itself if
    `Accept: video/mp4` (or `image/webp`) was sent. With `Prefer: respond-async` it answers 202 at once.
    With `Accept: text/event-stream` or `stream` it sends the rollout's events as they happen: see
    `GET /v1/rollouts/{rollout_id}/events`. A rollout is cancelled when the last client of this route that
    waits for it goes away, unless `Prefer: respond-async` was sent.
    """
    later = prefer is not None and "respond-async" in prefer.lower()
    record, fresh = await _create_once(body, services, caller, idempotency_key, later)
    info = _info(services, record)
    location = {"Location": f"/v1/rollouts/{record.id}"}
    applied: Mapping[str, str] = NO_HEADERS
    if later:
        if not fresh:
            await services.rollouts.detach(record, body, caller)
        applied = {"Preference-Applied": "respond-async"}
    free_key = partial(_release_key, services, record, idempotency_key)
    wanted = _wanted(accept)
    if body.stream or wanted == "events":
        events = _events(services, record, request).read()
        attendance = attending(record, services.rollouts, free_key)
        return EventStreamResponse(record, events, applied, attendance)
    if applied:
        return JSONResponse(rollout_json(record, info), 202, headers={**location, **applied})
    await wait_for_end(record, request, services.rollouts, free_key)
    if record.status != "succeeded":
        raise rollout_error(record)
    artifacts = _artifacts(services, record)
    if wanted is not None:
        data = await artifacts.video(pictures_of(record, info)[0], wanted)
        skip_ratio = f"{record.stats.skip_ratio:.4f}" if record.stats else ""
        headers = {**location, "X-Rollout-ID": record.id, "X-Skip-Ratio": skip_ratio}
        return Response(data, media_type=MEDIA_TYPES[wanted], headers=headers)
    return JSONResponse(await artifacts.rollout(), headers=location)


@router.get("", **answering(RolloutList, 422))
async def list_rollouts(
    query: Annotated[ListQuery, Query()], services: AppServices, owner: Owner
) -> dict[str, Any]:
    """Rollouts, newest first."""
    records = await services.store.list(owner, limit=query.limit + 1, after=query.after, status=query.status)
    page = records[: query.limit]
    return {
        "object": "list",
        "data": [rollout_json(record, services.models.known_info(record.model)) for record in page],
        "first_id": page[0].id if page else None,
        "last_id": page[-1].id if page else None,
        "has_more": len(records) > len(page),
    }


@router.get("/{rollout_id}", **answering(RolloutAnswer, 404, 409, 422))
async def get_rollout(record: OwnRollout, services: AppServices) -> dict[str, Any]:
    """One rollout, live or finished."""
    return await _artifacts(services, record).rollout()


@router.delete("/{rollout_id}", **answering(RolloutAnswer | Deleted, 404, 422))
async def delete_rollout(record: OwnRollout, services: AppServices) -> dict[str, Any]:
    """Cancel a live rollout; remove a finished one."""
    if record.live:
        ended = await services.rollouts.cancel(record)
        return rollout_json(ended, _info(services, ended))
    await services.store.remove(record.id)
    return {"id": record.id, "object": "rollout", "deleted": True}


@router.get(
    "/{rollout_id}/events", response_class=Response, **answering(None, 404, 422, media=[EVENT_STREAM])
)
async def get_events(
    record: OwnRollout,
    request: Request,
    services: AppServices,
    last_event_id: Annotated[str | None, Query(description="As the header, which goes first.")] = None,
    last_event_id_header: Annotated[str | None, Header(alias="Last-Event-ID")] = None,
) -> Response:
    """The rollout's events, from the first or from behind `Last-Event-ID` on, live or afterwards.

    `status`, then for each chunk its `frame`s as PNG (or JPEG if the output is) and the `chunk`'s statistics,
    at the end `done` with the rollout or `error`.
    """
    if last_event_id_header is not None:
        first = first_event_after(last_event_id_header, record, "Last-Event-ID")
    else:
        first = first_event_after(last_event_id, record, "last_event_id")
    return EventStreamResponse(record, _events(services, record, request).read(first))


@router.get(
    "/{rollout_id}/video",
    response_class=Response,
    **answering(None, 404, 409, 422, media=[MEDIA_TYPES["mp4"], MEDIA_TYPES["webp"]]),
)
async def get_video(
    record: OwnRollout,
    services: AppServices,
    modality: str | None = None,
    format: Literal["mp4", "webp"] | None = None,
) -> Response:
    """The rollout as a video of one modality."""
    asked = record.output.format
    chosen = format or ("webp" if asked == "webp" else "mp4")
    name = modality or pictures_of(record, _info(services, record))[0]
    data = await _artifacts(services, record).video(name, chosen)
    return Response(data, media_type=MEDIA_TYPES[chosen])


@router.get(
    "/{rollout_id}/frames/{index}",
    response_class=Response,
    **answering(None, 404, 409, 422, media=[MEDIA_TYPES["png"], MEDIA_TYPES["jpeg"]]),
)
async def get_frame(
    record: OwnRollout,
    services: AppServices,
    index: int,
    modality: str | None = None,
    format: Literal["png", "jpeg"] = "png",
) -> Response:
    """One frame at its own size, as soon as its chunk is done.

    Depth as PNG has 16 bits; `X-Depth-Scale` says what a count is.
    """
    info = _info(services, record)
    name = modality or pictures_of(record, info)[0]
    data = await _artifacts(services, record).picture(index, name, format)
    headers = {}
    scale = count_scale(info.modality(name), format)
    if scale is not None:
        headers["X-Depth-Scale"] = f"{scale:.9g}"
    return Response(data, media_type=MEDIA_TYPES[format], headers=headers)


@router.get(
    "/{rollout_id}/frames.npz",
    response_class=Response,
    **answering(None, 404, 409, 422, media=[MEDIA_TYPES["npz"]]),
)
async def get_npz(record: OwnRollout, services: AppServices) -> Response:
    """All frames as arrays, one per modality."""
    data = await _artifacts(services, record).npz()
    headers = {"Content-Disposition": f'attachment; filename="{record.id}.npz"'}
    return Response(data, media_type=MEDIA_TYPES["npz"], headers=headers)


def _info(services: Services, record: RolloutRecord) -> ModelInfo:
    return services.models.info(record.model)


def _artifacts(services: Services, record: RolloutRecord) -> Artifacts:
    return Artifacts(
        services.store, record, _info(services, record), services.settings.video_min_height, services.tracing
    )


def _events(services: Services, record: RolloutRecord, request: Request) -> RolloutEvents:
    return RolloutEvents(
        record,
        _info(services, record),
        services.store,
        services.rollouts,
        _artifacts(services, record),
        keep_alive=services.settings.stream_keepalive_seconds,
        request_id=request_id_of(request),
    )


def _wanted(accept: str | None) -> str | None:
    """What an Accept header prefers to JSON: a video format or ``events``."""
    offers = {MEDIA_TYPES["mp4"]: "mp4", MEDIA_TYPES["webp"]: "webp", EVENT_STREAM: "events"}
    for part in (accept or "").split(","):
        kind = part.partition(";")[0].strip().lower()
        if kind in offers:
            return offers[kind]
        if kind in ("application/json", "*/*"):
            return None
    return None


async def _create_once(
    body: RolloutBody, services: Services, caller: Caller, key: str | None, later: bool
) -> tuple[RolloutRecord, bool]:
    """A new rollout, or the one that an idempotency key already stands for; and whether it is new.

    A second request waits for the first to be accepted, which may take the loading of a model, and takes
    its place if it is refused.
    """
    if key is None:
        return await services.rollouts.create(body, caller, later=later), True
    canonical = json.dumps(body.model_dump(), sort_keys=True).encode()
    digest = hashlib.sha256(canonical).hexdigest()
    rollout_id = new_rollout_id()
    until = time.monotonic() + services.settings.model_wait_seconds + TWIN_SECONDS
    while True:
        known_digest, known_id = await services.store.claim_key(caller.owner, key, digest, rollout_id)
        if known_digest != digest:
            message = "this Idempotency-Key was used with another body; use a new key"
            raise ApiError(409, "idempotency_key_reused", message, param="Idempotency-Key")
        if known_id == rollout_id:
            try:
                return await services.rollouts.create(body, caller, rollout_id, later=later), True
            except BaseException:
                await services.store.release_key(caller.owner, key)
                raise
        record = await services.store.get(known_id)
        if record is not None:
            return record, False
        if time.monotonic() > until:
            message = "a request with this key is being accepted; try again"
            raise ApiError(409, "idempotency_key_in_use", message)
        await asyncio.sleep(0.02)


async def _release_key(services: Services, record: RolloutRecord, key: str | None) -> None:
    """Free an idempotency key, so that a retry makes a new rollout."""
    if key is not None:
        await services.store.release_key(record.owner, key)
