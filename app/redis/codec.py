"""Records as JSON, and back. What is shown to nobody (token maps) is left out."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, replace
from typing import Any

from app.schemas import OutputBody
from app.store import RolloutRecord
from worldcache.core import ChunkStats, ModalityStats, RolloutStats
from worldcache.errors import WorldCacheError

VERSION = 1
"""Of the schema; to be raised when an older reader would misunderstand a record."""

_LEFT_OUT = ("token_map", "token_grids")


class UnreadableRecord(WorldCacheError):
    """A newer version of the service wrote it."""

    code = "unreadable_record"


def encode_record(record: RolloutRecord) -> bytes:
    """A record as JSON."""
    data: dict[str, Any] = {field.name: getattr(record, field.name) for field in fields(record)}
    data["output"] = record.output.model_dump(mode="json")
    data["chunks"] = [_chunk(chunk) for chunk in record.chunks]
    if record.stats is not None:  # its chunks are those of the record
        whole = len(record.stats.chunks) == len(record.chunks)
        stats = asdict(replace(record.stats, chunks=()))
        data["stats"] = stats | {"chunks": None if whole else [_chunk(c) for c in record.stats.chunks]}
    return json.dumps({"version": VERSION, "record": data}).encode()


def decode_record(data: bytes) -> RolloutRecord:
    """The record that :func:`encode_record` wrote; fields that this version does not know are left out.

    Raises:
        UnreadableRecord: it is of a newer version.
    """
    document = json.loads(data)
    if document["version"] > VERSION:
        raise UnreadableRecord("a newer version of the service wrote this rollout; update this server")
    values = _known(RolloutRecord, document["record"])
    chunks = [_read_chunk(chunk) for chunk in values["chunks"]]
    stats = values.get("stats")
    if stats is not None:
        own = chunks if stats["chunks"] is None else [_read_chunk(chunk) for chunk in stats["chunks"]]
        stats = RolloutStats(**(_known(RolloutStats, stats) | {"chunks": tuple(own)}))
    output = OutputBody.model_validate(values["output"])
    return RolloutRecord(**(values | {"output": output, "chunks": chunks, "stats": stats}))


def _chunk(chunk: ChunkStats) -> dict[str, Any]:
    data = {f.name: getattr(chunk, f.name) for f in fields(chunk) if f.name not in _LEFT_OUT}
    data["modalities"] = {name: asdict(stats) for name, stats in chunk.modalities.items()}
    return data


def _read_chunk(data: dict[str, Any]) -> ChunkStats:
    values = _known(ChunkStats, data)
    modalities = {
        name: ModalityStats(**_known(ModalityStats, one)) for name, one in values["modalities"].items()
    }
    return ChunkStats(**(values | {"drift": tuple(values["drift"]), "modalities": modalities}))


def _known(kind: type[Any], data: dict[str, Any]) -> dict[str, Any]:
    """The values of fields that a dataclass has."""
    names = {field.name for field in fields(kind)}
    return {name: value for name, value in data.items() if name in names}
