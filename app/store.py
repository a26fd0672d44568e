"""Where rollouts are kept: records, artifacts and idempotency keys. In memory; Redis fits behind it."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from app.schemas import OutputBody
from worldcache.core import ChunkStats, RolloutStats

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


class Store(Protocol):
    """Keeps rollouts. Everything is asynchronous, for backends on a network."""

    async def add(self, record: RolloutRecord) -> None:
        """Keep a new rollout."""

    async def save(self, record: RolloutRecord) -> None:
        """Keep what has changed about a rollout."""

    async def get(self, rollout_id: str) -> RolloutRecord | None:
        """The rollout with this id."""

    async def remove(self, rollout_id: str) -> None:
        """Forget a rollout and its artifacts."""

    async def list(
        self, owner: str, *, limit: int, after: str | None, status: str | None
    ) -> list[RolloutRecord]:
        """An owner's rollouts, newest first, at most ``limit``, from behind ``after`` on."""

    async def put_artifact(
        self, rollout_id: str, name: str, data: bytes, *, replacing: Sequence[str] = ()
    ) -> None:
        """Keep bytes under a name, for as long as the rollout, and let go of other names at that moment."""

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
        clock: seconds that never go back; ages are measured with it, whatever the records say.
    """

    def __init__(
        self,
        *,
        max_rollouts: int,
        max_bytes: int,
        ttl_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_rollouts, self._max_bytes, self._ttl = max_rollouts, max_bytes, ttl_seconds
        self._clock = clock
        self._records: OrderedDict[str, RolloutRecord] = OrderedDict()
        self._ended_at: dict[str, float] = {}
        self._artifacts: dict[str, dict[str, bytes]] = {}
        self._keys: dict[tuple[str, str], tuple[str, str]] = {}
        self._bytes = 0

    async def add(self, record: RolloutRecord) -> None:
        self._records[record.id] = record
        self._artifacts[record.id] = {}
        self._evict()

    async def save(self, record: RolloutRecord) -> None:
        self._evict()

    async def get(self, rollout_id: str) -> RolloutRecord | None:
        self._evict()
        return self._records.get(rollout_id)

    async def remove(self, rollout_id: str) -> None:
        self._forget(rollout_id)

    async def list(
        self, owner: str, *, limit: int, after: str | None, status: str | None
    ) -> list[RolloutRecord]:
        self._evict()
        mine = [r for r in reversed(self._records.values()) if r.owner == owner]
        if after is not None:
            ids = [r.id for r in mine]
            mine = mine[ids.index(after) + 1 :] if after in ids else []
        return [r for r in mine if status is None or r.status == status][:limit]

    async def put_artifact(
        self, rollout_id: str, name: str, data: bytes, *, replacing: Sequence[str] = ()
    ) -> None:
        kept = self._artifacts.get(rollout_id)
        if kept is not None:
            for old in (name, *replacing):
                self._bytes -= len(kept.pop(old, b""))
            self._bytes += len(data)
            kept[name] = data
            self._evict(keep=rollout_id)

    async def get_artifact(self, rollout_id: str, name: str) -> bytes | None:
        return self._artifacts.get(rollout_id, {}).get(name)

    async def claim_key(self, owner: str, key: str, digest: str, rollout_id: str) -> tuple[str, str]:
        return self._keys.setdefault((owner, key), (digest, rollout_id))

    async def release_key(self, owner: str, key: str) -> None:
        self._keys.pop((owner, key), None)

    def _evict(self, keep: str | None = None) -> None:
        """Let go of finished rollouts that are too old, too many or too large."""
        finished = [r for r in self._records.values() if not r.live and r.id != keep]
        now = self._clock()
        for index, record in enumerate(finished):
            old = self._ended_at.setdefault(record.id, now) < now - self._ttl
            if old or len(finished) - index > self._max_rollouts or self._bytes > self._max_bytes:
                self._forget(record.id)

    def _forget(self, rollout_id: str) -> None:
        self._ended_at.pop(rollout_id, None)
        if self._records.pop(rollout_id, None) is not None:
            self._bytes -= sum(len(data) for data in self._artifacts.pop(rollout_id).values())
            for bound in [key for key, (_, target) in self._keys.items() if target == rollout_id]:
                del self._keys[bound]
