"""Where rollouts are kept: records, artifacts and idempotency keys. In memory, or in Redis: ``app/redis``."""

from __future__ import annotations

import logging
import time
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from app.artifacts import ArtifactStore, MemoryArtifacts
from app.errors import Unavailable
from app.schemas import OutputBody
from worldcache.core import ChunkStats, RolloutStats

logger = logging.getLogger(__name__)

LIVE = ("queued", "running")

NPZ = "frames.npz"
"""Name of the artifact that holds all frames of a finished rollout."""


@dataclass
class RolloutRecord:
    """All that is known of a rollout, but its frames.

    Attributes:
        owner: who may see it.
        chunk_ends: how many frames there were after each finished chunk.
        error: ``{"code", "message"}`` once it failed.
        deadline_ms: as the client gave it; ``deadline_at`` in seconds since the epoch.
        deadline_met: known at the end.
        chosen: the policy that the deadline was to be met with.
        expected_seconds: that it was expected to take when it was accepted, the line included.
        replaced_preset: that was asked for, if audits had it replaced.
        first_frame_seconds: from its acceptance until its first chunk was kept, once that is known.
        takeovers: how often another process went on with it, or the same one after it had let go of it.
        resumed_chunks: finished chunks that those did not have to compute again.
    """

    id: str
    owner: str
    model: str
    policy: str
    seed: int
    frames: int
    output: OutputBody
    metadata: dict[str, str]
    created_at: float = field(default_factory=time.time)
    started_at: float | None = None
    finished_at: float | None = None
    status: str = "queued"
    chunks: list[ChunkStats] = field(default_factory=list)
    chunk_ends: list[int] = field(default_factory=list)
    queue_seconds: float = 0.0
    stats: RolloutStats | None = None
    error: dict[str, str] | None = None
    deadline_ms: float | None = None
    deadline_at: float | None = None
    deadline_met: bool | None = None
    chosen: str | None = None
    replaced_preset: str | None = None
    expected_seconds: float | None = None
    first_frame_seconds: float | None = None
    takeovers: int = 0
    resumed_chunks: int = 0

    @property
    def live(self) -> bool:
        return self.status in LIVE

    @property
    def frames_done(self) -> int:
        return self.chunk_ends[-1] if self.chunk_ends else 0

    def chunk_of(self, frame: int) -> int:
        """The chunk that a finished frame belongs to."""
        return bisect_right(self.chunk_ends, frame)

    def chunk_frames(self, chunk: int) -> range:
        """The frames of a finished chunk."""
        return range(self.chunk_ends[chunk - 1] if chunk else 0, self.chunk_ends[chunk])


@dataclass(frozen=True)
class Checkpoint:
    """Where a rollout can be gone on with.

    Attributes:
        data: the model's exported context, as safetensors.
        frames: that were generated on the way there.
        chunks: that were finished on the way there.
    """

    data: bytes
    frames: int
    chunks: int


class LeaseLost(Exception):
    """Another process goes on with a rollout, or somebody ended it: this one may write nothing more of it."""


class StoreDown(Unavailable):
    """503: the store cannot be reached."""

    def __init__(self) -> None:
        message = "the store of rollouts cannot be reached; try again later, or ask synchronously"
        super().__init__("store_unavailable", message, retry_after=2)


class Store(Protocol):
    """Keeps rollouts. Everything is asynchronous, for backends on a network.

    A rollout is written by the process that runs it alone. To others its record is a copy, which
    :meth:`wait_changed` brings up to date.
    """

    async def add(self, record: RolloutRecord) -> None:
        """Keep a new rollout, which this process runs."""

    async def save(self, record: RolloutRecord, checkpoint: Checkpoint | None = None) -> None:
        """Keep what has changed about a rollout that this process runs.

        Args:
            checkpoint: where another process may go on with it, if that is known.

        Raises:
            LeaseLost: it does not run it any more.
        """

    async def get(self, rollout_id: str) -> RolloutRecord | None:
        """The rollout with this id; the very record while this process runs it.

        Raises:
            StoreDown: nobody knows.
        """

    async def wait_changed(self, record: RolloutRecord) -> bool:
        """Return once a live rollout that another process runs has changed, ``record`` brought up to date.

        False at once if no other process can have it.
        """

    async def end(self, record: RolloutRecord) -> bool:
        """End a rollout that another process runs, with the status and the error of ``record``.

        False if it had ended, or nobody has it; then ``record`` is brought up to date.

        Raises:
            StoreDown: that cannot be told to anybody.
        """

    async def remove(self, rollout_id: str) -> None:
        """Forget a rollout and its artifacts."""

    async def list(
        self, owner: str, *, limit: int, after: str | None, status: str | None
    ) -> list[RolloutRecord]:
        """An owner's rollouts, newest first, at most ``limit``, from behind ``after`` on."""

    async def put_artifact(
        self, rollout_id: str, name: str, data: bytes, *, replacing: Sequence[str] = ()
    ) -> None:
        """Keep bytes under a name, for as long as the rollout, and let go of other names at that moment.

        Raises:
            StorageFailed: there is no room for them.
            LeaseLost: the rollout is live, and another process runs it.
        """

    async def get_artifact(self, rollout_id: str, name: str) -> bytes | None:
        """The bytes kept under this name."""

    async def claim_key(self, owner: str, key: str, digest: str, rollout_id: str) -> tuple[str, str]:
        """Bind an idempotency key to a rollout, unless it is bound: the (digest, id) that it stands for."""

    async def release_key(self, owner: str, key: str) -> None:
        """Unbind a key whose rollout was never accepted."""


class InMemoryStore:
    """The default store: gone with the process, bounded in number, bytes and age.

    Live rollouts are never dropped. Their artifacts count, so finished rollouts make room for them.

    Args:
        max_rollouts: most finished rollouts; the oldest go first.
        max_bytes: most bytes of artifacts; only live rollouts can exceed it.
        ttl_seconds: age at which a finished rollout goes.
        artifacts: where the bytes are; in memory if left out.
        clock: seconds that never go back; ages are measured with it, whatever the records say.
    """

    def __init__(
        self,
        *,
        max_rollouts: int,
        max_bytes: int,
        ttl_seconds: float,
        artifacts: ArtifactStore | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_rollouts, self._max_bytes, self._ttl = max_rollouts, max_bytes, ttl_seconds
        self._blobs = artifacts or MemoryArtifacts()
        self._clock = clock
        self._records: OrderedDict[str, RolloutRecord] = OrderedDict()
        self._sizes: dict[str, dict[str, int]] = {}
        self._ended_at: dict[str, float] = {}
        self._keys: dict[tuple[str, str], tuple[str, str]] = {}
        self._bytes = 0

    async def add(self, record: RolloutRecord) -> None:
        self._records[record.id] = record
        self._sizes[record.id] = {}
        await self._evict()

    async def save(self, record: RolloutRecord, checkpoint: Checkpoint | None = None) -> None:
        await self._evict()

    async def get(self, rollout_id: str) -> RolloutRecord | None:
        await self._evict()
        return self._records.get(rollout_id)

    async def wait_changed(self, record: RolloutRecord) -> bool:
        return False

    async def end(self, record: RolloutRecord) -> bool:
        return False

    async def remove(self, rollout_id: str) -> None:
        await self._blobs.remove(self._forget(rollout_id))

    async def list(
        self, owner: str, *, limit: int, after: str | None, status: str | None
    ) -> list[RolloutRecord]:
        await self._evict()
        mine = [r for r in reversed(self._records.values()) if r.owner == owner]
        if after is not None:
            ids = [r.id for r in mine]
            mine = mine[ids.index(after) + 1 :] if after in ids else []
        return [r for r in mine if status is None or r.status == status][:limit]

    async def put_artifact(
        self, rollout_id: str, name: str, data: bytes, *, replacing: Sequence[str] = ()
    ) -> None:
        if rollout_id not in self._sizes:
            return
        await self._blobs.put(f"{rollout_id}/{name}", data)
        sizes = self._sizes.get(rollout_id)
        if sizes is None:  # the rollout went in the meantime
            await self._blobs.remove([f"{rollout_id}/{name}"])
            return
        for old in (name, *replacing):
            self._bytes -= sizes.pop(old, 0)
        self._bytes += len(data)
        sizes[name] = len(data)
        await self._remove([f"{rollout_id}/{old}" for old in replacing if old != name])
        await self._evict(keep=rollout_id)

    async def get_artifact(self, rollout_id: str, name: str) -> bytes | None:
        if name not in self._sizes.get(rollout_id, {}):
            return None
        return await self._blobs.get(f"{rollout_id}/{name}")

    async def claim_key(self, owner: str, key: str, digest: str, rollout_id: str) -> tuple[str, str]:
        return self._keys.setdefault((owner, key), (digest, rollout_id))

    async def release_key(self, owner: str, key: str) -> None:
        self._keys.pop((owner, key), None)

    async def _evict(self, keep: str | None = None) -> None:
        """Let go of finished rollouts that are too old, too many or too large."""
        finished = [r for r in self._records.values() if not r.live and r.id != keep]
        now = self._clock()
        gone: list[str] = []
        for index, record in enumerate(finished):
            old = self._ended_at.setdefault(record.id, now) < now - self._ttl
            if old or len(finished) - index > self._max_rollouts or self._bytes > self._max_bytes:
                gone += self._forget(record.id)
        await self._remove(gone)

    async def _remove(self, keys: Sequence[str]) -> None:
        """Let go of bytes that nobody asks for any more; others are served meanwhile."""
        try:
            await self._blobs.remove(keys)
        except Exception:
            logger.exception("what is left of %d artifacts cannot be removed", len(keys))

    def _forget(self, rollout_id: str) -> Sequence[str]:
        """Forget a rollout at once; the keys of its artifacts, which are to be removed."""
        self._ended_at.pop(rollout_id, None)
        if self._records.pop(rollout_id, None) is None:
            return []
        sizes = self._sizes.pop(rollout_id)
        self._bytes -= sum(sizes.values())
        for bound in [key for key, (_, target) in self._keys.items() if target == rollout_id]:
            del self._keys[bound]
        return [f"{rollout_id}/{name}" for name in sizes]
