"""A rollout's frames in the store: a file for each chunk, and one for all once it has succeeded."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.errors import NotFound
from app.npz import FrameFile
from app.store import NPZ, RolloutRecord, Store
from worldcache.core import Frames


def chunk_name(chunk: int) -> str:
    """Name of the artifact that holds a chunk's frames until all are in ``frames.npz``."""
    return f"chunks/{chunk}.npz"


def pack_chunk(frames: Frames) -> bytes:
    """One array per modality, not compressed: it is read soon and kept briefly."""
    stream = io.BytesIO()
    arrays = {name: np.ascontiguousarray(array) for name, array in frames.items()}
    np.savez(stream, allow_pickle=False, **arrays)
    return stream.getvalue()


def join_chunks(parts: Sequence[bytes | None]) -> dict[str, NDArray[Any]]:
    """All frames by modality, from what :func:`pack_chunk` made of each chunk.

    Raises:
        LookupError: a chunk is missing.
    """
    files = [FrameFile(part) for part in parts if part is not None]
    if len(files) < len(parts):
        raise LookupError("the store has lost a chunk")
    return {name: np.concatenate([file.all(name) for file in files]) for name in files[0].modalities}


class FrameReader:
    """Finds the frames that a rollout has so far. The file that was used last stays open."""

    def __init__(self, store: Store, record: RolloutRecord) -> None:
        self._store, self._record = store, record
        self._file: FrameFile | None = None
        self._held = range(0)

    async def find(self, index: int) -> tuple[FrameFile, int]:
        """The file that holds a finished frame, and the frame's place in it.

        Raises:
            NotFound: the store has let go of the rollout.
        """
        if self._file is None or index not in self._held:
            self._file, self._held = await self._load(index)
        return self._file, index - self._held.start

    async def _load(self, index: int) -> tuple[FrameFile, range]:
        record = self._record
        chunk = record.chunk_of(index)
        data = await self._store.get_artifact(record.id, chunk_name(chunk))
        if data is not None:
            return FrameFile(data), record.chunk_frames(chunk)
        data = await self._store.get_artifact(record.id, NPZ)
        if data is None:
            raise NotFound(f"rollout {record.id!r} is no longer kept", code="unknown_rollout")
        return FrameFile(data), range(record.frames)
