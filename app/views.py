"""Rollouts as clients see them."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from anyio import to_thread
from numpy.typing import NDArray

from app.errors import ApiError
from app.frames import FrameReader
from app.media import MEDIA_TYPES, encode_picture, encode_video, from_npz, to_pixels
from app.schemas import IMAGE_FORMATS, VIDEO_FORMATS
from app.store import NPZ, RolloutRecord, Store
from app.tracing import Tracing
from worldcache.core import ChunkStats, Modality, ModelInfo, RolloutStats
from worldcache.errors import DeadlineExceeded, InvalidInput


def rollout_json(record: RolloutRecord, info: ModelInfo | None) -> dict[str, Any]:
    """The rollout object; without links to artifacts if nothing is known of its model."""
    return {
        "id": record.id,
        "object": "rollout",
        "status": record.status,
        "model": record.model,
        "created_at": round(record.created_at, 3),
        "started_at": None if record.started_at is None else round(record.started_at, 3),
        "finished_at": None if record.finished_at is None else round(record.finished_at, 3),
        "seed": record.seed,
        "frames": record.frames,
        "frames_done": record.frames_done,
        "artifacts": artifact_links(record, info) if info and record.status == "succeeded" else {},
        "stats": stats_json(record),
        "error": record.error,
        "metadata": record.metadata,
    }


def modalities_of(record: RolloutRecord, info: ModelInfo) -> list[str]:
    """The modalities that the request asked for."""
    return list(record.output.modalities or (m.name for m in info.modalities))


def pictures_of(record: RolloutRecord, info: ModelInfo) -> list[str]:
    """Those of them that are pictures; all of the model's if none of them is."""
    names = [m.name for m in info.pictures]
    return [name for name in modalities_of(record, info) if name in names] or names


def artifact_links(record: RolloutRecord, info: ModelInfo) -> dict[str, Any]:
    """Where the artifacts of a finished rollout are."""
    base, format = f"/v1/rollouts/{record.id}", record.output.format
    links: dict[str, Any] = {"npz": f"{base}/{NPZ}"}
    names = pictures_of(record, info)
    if format in VIDEO_FORMATS:
        links["video"] = {name: f"{base}/video?modality={name}" for name in names}
    elif format in IMAGE_FORMATS:
        links["frames"] = {
            name: [f"{base}/frames/{i}?modality={name}&format={format}" for i in range(record.frames)]
            for name in names
        }
    return links


def seconds_to_ms(seconds: float | None) -> float | None:
    """Milliseconds to a microsecond's precision."""
    return None if seconds is None else round(1000 * seconds, 3)


def stats_json(record: RolloutRecord) -> dict[str, Any]:
    """The ``stats`` of a rollout object, also while it runs."""
    stats = record.stats or RolloutStats(
        record.policy, tuple(record.chunks), queue_seconds=record.queue_seconds
    )
    figures = figures_json(
        stats,
        record.frames_done,
        replaced_preset=record.replaced_preset,
        expected_seconds=record.expected_seconds,
    )
    figures |= {"takeovers": record.takeovers, "resumed_chunks": record.resumed_chunks}
    return {**figures, **_deadline_json(record), "chunks": [chunk_json(chunk) for chunk in stats.chunks]}


def figures_json(
    stats: RolloutStats, frames: int, *, replaced_preset: str | None, expected_seconds: float | None
) -> dict[str, Any]:
    """What so many frames took, chunks apart."""
    latency = stats.latency_seconds or None
    frames_per_second = round(frames / latency, 3) if latency else None
    return {
        "policy": stats.policy,
        "replaced_preset": replaced_preset,
        "steps_total": stats.steps_total,
        "steps_full": stats.steps_full,
        "steps_cached": stats.steps_cached,
        "skip_ratio": round(stats.skip_ratio, 6),
        "expected_ms": seconds_to_ms(expected_seconds),
        "queue_ms": seconds_to_ms(stats.queue_seconds),
        "first_frame_ms": seconds_to_ms(stats.first_frame_seconds),
        "latency_ms": seconds_to_ms(latency),
        "denoise_ms": seconds_to_ms(stats.denoise_seconds),
        "decode_ms": seconds_to_ms(stats.decode_seconds),
        "frames_per_second": frames_per_second,
    }


def _deadline_json(record: RolloutRecord) -> dict[str, Any]:
    if record.deadline_ms is None:
        return {}
    return {"deadline": {"ms": record.deadline_ms, "met": record.deadline_met, "chosen": record.chosen}}


def chunk_json(chunk: ChunkStats) -> dict[str, Any]:
    """How one chunk was denoised."""
    return {
        "index": chunk.index,
        "decisions": chunk.decisions,
        "token_classes": chunk.token_classes,
        "drift": chunk.drift,
        "fallbacks": chunk.fallbacks,
        "modalities": {name: asdict(stats) for name, stats in chunk.modalities.items()},
    }


def rollout_error(record: RolloutRecord) -> ApiError:
    """Why a rollout that ended has not succeeded; its ``Location`` says where to look."""
    error, headers = record.error or {}, {"Location": f"/v1/rollouts/{record.id}"}
    if error.get("code") == DeadlineExceeded.code:
        return ApiError(504, error["code"], error["message"], param="deadline_ms", headers=headers)
    if record.status == "cancelled":
        message = f"rollout {record.id} was cancelled"
        return ApiError(409, "rollout_cancelled", message, headers=headers)
    return ApiError(
        422 if "param" in error else 500,
        error.get("code", "rollout_failed"),
        error.get("message", "the rollout failed"),
        param=error.get("param"),
        headers=headers,
    )


def pictures_json(values: Mapping[str, NDArray[Any]], info: ModelInfo, format: str) -> dict[str, Any]:
    """One frame by modality: pictures as data URIs, with the scale of maps, and matrices as rows; blocks.

    Args:
        values: the frame of each modality.
        info: of the model.
        format: ``png`` or ``jpeg``.
    """
    pictures: dict[str, Any] = {}
    for name, array in values.items():
        modality = info.modality(name)
        if not modality.picture:
            pictures[name] = array.tolist()
            continue
        picture = encode_picture(array, modality, format)
        pictures[name] = f"data:{MEDIA_TYPES[format]};base64,{base64.b64encode(picture).decode()}"
        scale = count_scale(modality, format)
        if scale is not None:
            pictures[f"{name}_scale"] = scale
    return pictures


def count_scale(modality: Modality, format: str) -> float | None:
    """What a count of a map's 16-bit PNG is in the modality's unit; ``None`` for other pictures."""
    return modality.high / 65535 if modality.channels == 1 and format == "png" else None


class Artifacts:
    """Makes a rollout's files from its frames; videos are kept once they are made."""

    def __init__(
        self,
        store: Store,
        record: RolloutRecord,
        info: ModelInfo,
        min_height: int,
        tracing: Tracing | None = None,
    ) -> None:
        self._store, self._record, self._info, self._min_height = store, record, info, min_height
        self._tracing = tracing or Tracing()
        self._frames = FrameReader(store, record)

    async def rollout(self) -> dict[str, Any]:
        """The rollout object, the artifacts of a finished one inline if the request asked for that."""
        answer = rollout_json(self._record, self._info)
        if self._record.output.inline and self._record.status == "succeeded":
            answer["artifacts"]["inline"] = await self.inline()
        return answer

    async def npz(self) -> bytes:
        """``frames.npz``.

        Raises:
            ApiError: 409 if the rollout has not finished or has no frames.
        """
        data = None if self._record.live else await self._store.get_artifact(self._record.id, NPZ)
        if data is None:
            raise self._not_there()
        return data

    async def video(self, modality: str, format: str) -> bytes:
        """The rollout as one ``mp4`` or ``webp``."""
        chosen = _picture(modality, self._info)
        name = f"{modality}-{self._min_height}.{format}"
        kept = await self._store.get_artifact(self._record.id, name)
        if kept is not None:
            return kept
        npz = await self.npz()
        fps = self._record.output.fps or self._info.fps

        def encode() -> bytes:
            pixels = to_pixels(from_npz(npz)[modality], chosen)
            return encode_video(pixels, fps, format, self._min_height)

        with self._tracing.span("encode", modality=modality, format=format):
            data = await to_thread.run_sync(encode)
        await self._store.put_artifact(self._record.id, name, data)
        return data

    async def picture(self, index: int, modality: str, format: str) -> bytes:
        """One frame, also of a rollout that has not finished or that failed behind it.

        Raises:
            ApiError: there is no such frame, or not yet.
        """
        chosen, record = _picture(modality, self._info), self._record
        if not 0 <= index < record.frames:
            message = f"the rollout has frames 0 to {record.frames - 1}"
            raise ApiError(404, "unknown_frame", message, param="index")
        if index >= record.frames_done:
            raise self._not_there()
        file, place = await self._frames.find(index)

        def encode() -> bytes:
            return encode_picture(file.read(modality, place, place + 1)[0], chosen, format)

        with self._tracing.span("encode", modality=modality, format=format):
            return await to_thread.run_sync(encode)

    async def inline(self) -> dict[str, Any]:
        """What the request asked for, as base64 by modality."""
        format = self._record.output.format
        if format == "none":
            return {}
        if format == "npz":
            return {"npz": _base64(await self.npz(), format)}
        names = pictures_of(self._record, self._info)
        if format in VIDEO_FORMATS:
            return {"video": {name: _base64(await self.video(name, format), format) for name in names}}
        frames = range(self._record.frames)
        return {
            "frames": {
                name: [_base64(await self.picture(i, name, format), format) for i in frames] for name in names
            }
        }

    def _not_there(self) -> ApiError:
        if self._record.live:
            return ApiError(409, "not_finished", "the rollout has not finished; look again later")
        return ApiError(
            409, "no_frames", f"the rollout ended as {self._record.status}: it does not have these frames"
        )


def _picture(name: str, info: ModelInfo) -> Modality:
    """A modality that is a picture.

    Raises:
        InvalidInput: there is none of that name, or it is no picture.
    """
    modality = info.modality(name, param="modality")
    if not modality.picture:
        message = f"modality: {name!r} is no picture; read it in {NPZ}"
        raise InvalidInput(message, param="modality", code="not_a_picture")
    return modality


def _base64(data: bytes, format: str) -> dict[str, str]:
    return {"media_type": MEDIA_TYPES[format], "base64": base64.b64encode(data).decode()}
