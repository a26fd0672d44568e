"""``/v1/videos``: rollouts for clients that know OpenAI's API for videos."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect

from app.answers import Deleted, VideoAnswer, VideoList
from app.auth import Caller
from app.dependencies import AppServices, FromCaller, Owner, Services
from app.errors import ApiError, NotFound
from app.media import MEDIA_TYPES
from app.openapi import BODY, answering
from app.store import RolloutRecord
from app.videos import (
    VideoBody,
    VideoListQuery,
    form_fields,
    in_video_terms,
    naming_video_fields,
    rollout_id,
    to_rollout,
    video_height,
    video_id,
    video_json,
)
from app.views import Artifacts, pictures_of
from app.waiting import wait_for_end

router = APIRouter(prefix="/v1/videos", tags=["videos"])

IMAGE_FIELD = "input_reference"

MAX_FILES, MAX_FIELDS = 8, 64
"""Most files and fields of a form, besides one field for each action."""


def _body_schema() -> dict[str, Any]:
    """The two kinds of body for the OpenAPI page, whose references cannot lead into a schema of a route."""
    schema = VideoBody.model_json_schema()
    definitions = schema.pop("$defs")

    def resolved(node: Any) -> Any:
        if isinstance(node, list):
            return [resolved(part) for part in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            return definitions[node["$ref"].rpartition("/")[2]]
        return {key: resolved(part) for key, part in node.items()}

    as_json = resolved(schema)
    upload = {**as_json["properties"][IMAGE_FIELD], "type": "string", "format": "binary"}
    del upload["anyOf"]
    as_form = {**as_json, "properties": {**as_json["properties"], IMAGE_FIELD: upload}}
    content = {"application/json": {"schema": as_json}, "multipart/form-data": {"schema": as_form}}
    return {"requestBody": {"required": True, "content": content}}


async def read_body(request: Request, services: AppServices) -> VideoBody:
    """The request's body, JSON or a multipart form."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        data = await _read_form(request, services)
    elif kind == "application/json" or kind.endswith("+json"):
        data = await _read_json(request)
    else:
        message = "send application/json or multipart/form-data"
        raise ApiError(415, "unsupported_media_type", message)
    try:
        return VideoBody.model_validate(data)
    except ValidationError as error:
        problems = [{**problem, "loc": ("body", *problem["loc"])} for problem in error.errors()]
        raise RequestValidationError(problems, body=data) from error


async def get_video(video: str, services: AppServices, owner: Owner) -> RolloutRecord:
    """The rollout of the path's video, if it exists and belongs to whoever asks."""
    record = await services.store.get(rollout_id(video))
    if record is None or record.owner != owner:
        raise NotFound(f"there is no video {video!r}; it may have expired", code="unknown_video")
    return record


ReadBody = Annotated[VideoBody, Depends(read_body)]
OwnVideo = Annotated[RolloutRecord, Depends(get_video)]


@router.post("", openapi_extra=_body_schema(), **answering(VideoAnswer, *BODY))
async def create_video(body: ReadBody, services: AppServices, caller: FromCaller) -> dict[str, Any]:
    """Begin a video; poll it, then fetch its content."""
    record = await _create(body, services, caller, later=True)
    return _describe(record, services)


@router.post(
    "/sync",
    openapi_extra=_body_schema(),
    response_class=Response,
    **answering(None, *BODY, 409, 500, media=[MEDIA_TYPES["mp4"]]),
)
async def create_video_and_wait(
    body: ReadBody, request: Request, services: AppServices, caller: FromCaller
) -> Response:
    """Make a video and answer with it. A client that goes away cancels it."""
    record = await _create(body, services, caller, later=False)
    await wait_for_end(record, request, services.rollouts)
    video = _describe(record, services)
    if record.status == "cancelled":
        raise ApiError(409, "rollout_cancelled", f"video {video['id']} was cancelled")
    if record.status == "failed":
        error = in_video_terms(record.error or {"code": "rollout_failed", "message": "the rollout failed"})
        status = 422 if "param" in error else 500
        raise ApiError(status, error["code"], error["message"], param=error.get("param"))
    headers = {
        "Location": f"/v1/videos/{video['id']}",
        "X-Video-ID": video["id"],
        "X-Inference-Time-S": str(video["inference_time_s"]),
        "X-Skip-Ratio": str(video["stats"]["skip_ratio"]),
    }
    return Response(await _content(record, services), media_type=MEDIA_TYPES["mp4"], headers=headers)


@router.get("", **answering(VideoList, 422))
async def list_videos(
    query: Annotated[VideoListQuery, Query()], services: AppServices, owner: Owner
) -> dict[str, Any]:
    """Videos, newest first unless `order` is `asc`."""
    records = await _page(query, services, owner)
    page = [_describe(record, services) for record in records[: query.limit]]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": len(records) > len(page),
    }


@router.get("/{video}", **answering(VideoAnswer, 404, 422))
async def get_one_video(record: OwnVideo, services: AppServices) -> dict[str, Any]:
    """How far a video is."""
    return _describe(record, services)


@router.get(
    "/{video}/content",
    response_class=Response,
    **answering(None, 404, 409, 422, media=[MEDIA_TYPES["mp4"]]),
)
async def get_content(
    record: OwnVideo, services: AppServices, variant: Literal["video"] = "video"
) -> Response:
    """The video as mp4; 409 until it is completed."""
    headers = {"Content-Disposition": f'attachment; filename="{video_id(record.id)}.mp4"'}
    return Response(await _content(record, services), media_type=MEDIA_TYPES["mp4"], headers=headers)


@router.delete("/{video}", **answering(Deleted, 404, 422))
async def delete_video(record: OwnVideo, services: AppServices) -> dict[str, Any]:
    """Remove a video, cancelling it first if it is live."""
    await services.rollouts.cancel(record)
    await services.store.remove(record.id)
    return {"id": video_id(record.id), "object": "video.deleted", "deleted": True}


async def _create(body: VideoBody, services: Services, caller: Caller, *, later: bool) -> RolloutRecord:
    """Begin the rollout of a video; the model stays leased until it has been accepted."""
    with naming_video_fields():
        with _counting_refusals(services):
            model = body.model or _only_model(services, caller)
            lease = await services.models.lease(model, allowed=caller.models)
        try:
            with _counting_refusals(services):
                rollout = to_rollout(body, model, lease.model.info, max_frames=services.settings.max_frames)
            return await services.rollouts.create(rollout, caller, later=later)
        finally:
            lease.release()


@contextmanager
def _counting_refusals(services: Services) -> Iterator[None]:
    try:
        yield
    except ApiError as error:
        services.metrics.rejected.labels(error.code).inc()
        raise


def _only_model(services: Services, caller: Caller) -> str:
    models = [hosted.id for hosted in services.models.all(caller.models)]
    if len(models) != 1:
        message = f"model: this server has several; name one of: {', '.join(models)}"
        raise ApiError(422, "missing_field", message, param="model")
    return models[0]


async def _page(query: VideoListQuery, services: Services, owner: str) -> list[RolloutRecord]:
    """The records of a page, and one more if there are any behind it."""
    after = None if query.after is None else rollout_id(query.after)
    wanted = query.limit + 1
    if query.order == "desc":
        return await services.store.list(owner, limit=wanted, after=after, status=None)
    settings = services.settings
    most = settings.store_max_rollouts + settings.max_active + settings.max_queue
    records = (await services.store.list(owner, limit=most, after=None, status=None))[::-1]
    if after is not None:
        ids = [record.id for record in records]
        records = records[ids.index(after) + 1 :] if after in ids else []
    return records[:wanted]


def _describe(record: RolloutRecord, services: Services) -> dict[str, Any]:
    settings = services.settings
    return video_json(
        record,
        services.models.info(record.model),
        min_height=settings.video_min_height,
        ttl_seconds=settings.store_ttl_seconds,
    )


async def _content(record: RolloutRecord, services: Services) -> bytes:
    info = services.models.info(record.model)
    height = video_height(record, info, services.settings.video_min_height)
    artifacts = Artifacts(services.store, record, info, height, services.tracing)
    return await artifacts.video(pictures_of(record, info)[0], "mp4")


async def _read_json(request: Request) -> Any:
    try:
        return await request.json()
    except ClientDisconnect:
        raise ApiError(409, "client_closed_request", "the client closed the connection") from None
    except RecursionError:
        raise ApiError(400, "invalid_json", "the body is nested too deeply") from None
    except ValueError as error:
        raise ApiError(400, "invalid_json", f"the body is not valid JSON: {error}") from None


async def _read_form(request: Request, services: Services) -> dict[str, Any]:
    """A form's fields; an uploaded image becomes base64."""
    settings = services.settings
    fields: list[tuple[str, str]] = []
    async with request.form(
        max_files=MAX_FILES,
        max_fields=settings.max_frames + MAX_FIELDS,
        max_part_size=settings.max_body_bytes,
    ) as form:
        for name, value in form.multi_items():
            if isinstance(value, str):
                fields.append((name, value))
            elif name != IMAGE_FIELD:
                message = f"{name}: send a value, not a file"
                raise ApiError(422, "invalid_value", message, param=name)
            else:
                fields.append((name, await _read_upload(value, settings.max_image_bytes)))
    return form_fields(fields)


async def _read_upload(file: UploadFile, max_bytes: int) -> str:
    if (file.size or 0) > max_bytes:
        message = f"{IMAGE_FIELD}: at most {max_bytes} bytes"
        raise ApiError(413, "image_too_large", message, param=IMAGE_FIELD)
    return base64.b64encode(await file.read()).decode()
