"""The store in Redis, behind the same interface as the one in memory.

Rollouts of this process are kept here as well until Redis has heard of their end: so they go on while Redis
is away, and are written down when it is back.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from urllib.parse import quote

from app.artifacts import ArtifactStore, StorageFailed
from app.redis.changes import Changes
from app.redis.codec import decode_record, encode_record
from app.redis.held import Held
from app.redis.keys import Keys
from app.redis.link import Link, Value, texts
from app.redis.scripts import DONE, FENCED, MISSING
from app.store import Checkpoint, LeaseLost, RolloutRecord, StoreDown

logger = logging.getLogger(__name__)

POLL_SECONDS = 1.0
"""Between two looks at a rollout of another process, if nothing is heard of it."""

MAX_KEYS = 10_000
"""Idempotency keys that are remembered while Redis is away."""


@dataclass(frozen=True)
class Bounds:
    """How much is kept.

    Attributes:
        max_rollouts, max_bytes, ttl_seconds: as for the store in memory, of all processes together.
        claim_seconds: how long an idempotency key is bound to a rollout that was not accepted yet.
        removed_seconds: how long nobody may bring a removed rollout back.
    """

    max_rollouts: int
    max_bytes: int
    ttl_seconds: float
    claim_seconds: float = 180.0
    removed_seconds: float = 60.0


class RedisStore:
    """Keeps rollouts in Redis.

    Args:
        replica: name of this process.
        artifacts: where the bytes are.
        lost: told of a rollout of this process that it may not write any more.
    """

    def __init__(
        self,
        link: Link,
        keys: Keys,
        replica: str,
        artifacts: ArtifactStore,
        bounds: Bounds,
        *,
        lost: Callable[[str], None] = lambda rollout_id: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._link, self._keys, self._replica = link, keys, replica
        self._blobs, self._bounds, self._clock = artifacts, bounds, clock
        self.lost = lost
        self.held: dict[str, Held] = {}
        self._bound: OrderedDict[str, str] = OrderedDict()
        self.changes: Changes | None = None

    async def add(self, record: RolloutRecord) -> None:
        held = self.held[record.id] = Held(record, uuid.uuid4().hex, known=False, changed=not record.live)
        await self._write_back(held)

    def hold(self, record: RolloutRecord, token: str) -> Held:
        """A rollout that was taken to be run here."""
        held = self.held[record.id] = Held(record, token)
        return held

    async def save(self, record: RolloutRecord, checkpoint: Checkpoint | None = None) -> None:
        held = self.held.get(record.id)
        if held is None:
            raise LeaseLost(record.id)
        held.note(checkpoint)
        await self._write_back(held)

    async def get(self, rollout_id: str) -> RolloutRecord | None:
        held = self.held.get(rollout_id)
        return held.record if held is not None else await self._read(rollout_id)

    async def wait_changed(self, record: RolloutRecord) -> bool:
        if self.changes is None:
            return False
        with self.changes.hearing(record.id) as heard:
            while True:
                heard.clear()
                with suppress(StoreDown):
                    fresh = await self.get(record.id)
                    if fresh is None or _progress(fresh) != _progress(record):
                        _bring_up_to_date(record, fresh)
                        return True
                with suppress(TimeoutError):
                    await asyncio.wait_for(heard.wait(), POLL_SECONDS)

    async def end(self, record: RolloutRecord) -> bool:
        while True:
            found = await self._link.call("HMGET", self._keys.rollout(record.id), "record", "rev")
            fresh = None if found[0] is None else decode_record(found[0])
            if fresh is None or not fresh.live:
                _bring_up_to_date(record, fresh)
                return False
            fresh.status, fresh.finished_at = record.status, record.finished_at
            fresh.stats, fresh.error = record.stats, record.error
            answer, gone = await self._link.run(
                "end", record.id, found[1], encode_record(fresh), fresh.status, *self._limits()
            )
            if answer == DONE:
                _bring_up_to_date(record, fresh)
                await self._clean(gone)
                return True

    async def remove(self, rollout_id: str) -> None:
        self.held.pop(rollout_id, None)
        gone = await self._link.run("remove", rollout_id, int(1000 * self._bounds.removed_seconds))
        await self._clean(gone)

    async def list(
        self, owner: str, *, limit: int, after: str | None, status: str | None
    ) -> list[RolloutRecord]:
        found = await self._link.run("list", owner, limit, after or "", status or "")
        records = [decode_record(data) for data in found]
        return [self.held[record.id].record if record.id in self.held else record for record in records]

    async def put_artifact(
        self, rollout_id: str, name: str, data: bytes, *, replacing: Sequence[str] = ()
    ) -> None:
        held = self.held.get(rollout_id)
        if held is not None:
            held.keep(name, data, replacing)
            try:
                await self._write_back(held)
            except StorageFailed:
                held.data.pop(name, None)
                raise
            return
        with suppress(StoreDown):  # it can be made again
            if await self._upload(rollout_id, "", name, data, replacing) == FENCED:
                raise LeaseLost(rollout_id)

    async def get_artifact(self, rollout_id: str, name: str) -> bytes | None:
        held = self.held.get(rollout_id)
        if held is not None and name in held.data:
            return held.data[name]
        entry = await self._link.call("HGET", self._keys.artifacts(rollout_id), name)
        return None if entry is None else await self._blobs.get(entry.decode().partition(":")[2])

    async def claim_key(self, owner: str, key: str, digest: str, rollout_id: str) -> tuple[str, str]:
        name, value = self._keys.idempotency(owner, key), f"{digest} {rollout_id}"
        if name in self._bound:
            value = self._bound[name]
        else:
            try:
                value = await self._claim(name, value, rollout_id)
            except StoreDown:
                self._bound[name] = value
                if len(self._bound) > MAX_KEYS:
                    self._bound.popitem(last=False)
        known_digest, _, known_id = value.partition(" ")
        return known_digest, known_id

    async def release_key(self, owner: str, key: str) -> None:
        name = self._keys.idempotency(owner, key)
        self._bound.pop(name, None)
        with suppress(StoreDown):
            await self._link.run("release_key", name)

    async def settle(self, held: Held) -> None:
        """Tell Redis what it has not heard of one rollout, before it is let go of."""
        if not held.saved:
            with suppress(LeaseLost, StorageFailed):
                await self._write_back(held)

    async def write_back(self) -> None:
        """Tell Redis what it has not heard, after it was away."""
        for held in list(self.held.values()):
            if held.saved:
                continue
            try:
                await self._write_back(held)
            except LeaseLost:
                logger.warning("rollout %s is others' now", held.record.id)
            except StorageFailed as error:
                await self._fail(held, error)
        self._drop_unsaved()

    async def beat(self, span_ms: int) -> None:
        """Show that this process lives, and find out which rollouts are still its own."""
        known = [held for held in self.held.values() if held.known]
        pairs: list[Value] = [part for held in known for part in (held.record.id, held.token)]
        states = await self._link.run("beat", self._replica, span_ms, *pairs)
        for held, state in zip(known, states, strict=True):
            if self.held.get(held.record.id) is not held or held.lock.locked():
                continue
            if state == FENCED:
                self._lose(held)
            elif state == MISSING:
                logger.warning("Redis has lost rollout %s; it is written again", held.record.id)
                held.forget()

    async def sweep(self) -> Sequence[str]:
        """Let go of what is old; the rollouts whose process is gone and that nobody can go on with."""
        gone, orphans = await self._link.run("sweep", *self._limits())
        await self._clean(gone)
        return texts(orphans)

    async def clear_strays(self) -> None:
        """Let go of files of rollouts that are not kept any more, because no process was left to do so."""
        for rollout_id in await self._blobs.strays(self._bounds.ttl_seconds + self._bounds.claim_seconds):
            known = await self._link.call("EXISTS", self._keys.rollout(rollout_id))
            if not known and rollout_id not in self.held:
                await self._blobs.remove_rollout(rollout_id)

    async def _read(self, rollout_id: str) -> RolloutRecord | None:
        data = await self._link.call("HGET", self._keys.rollout(rollout_id), "record")
        return None if data is None else decode_record(data)

    async def _write_back(self, held: Held) -> None:
        """Tell Redis what it has not heard of a rollout; all of it, or as much as can be.

        Raises:
            LeaseLost: it is not this process's any more.
            StorageFailed: there is no room for an artifact, which is not tried again.
        """
        async with held.lock:
            if self.held.get(held.record.id) is not held:
                raise LeaseLost(held.record.id)
            try:
                if not await self._tell(held):
                    await self._tell(held)
            except StoreDown:
                return
            if held.saved and not held.record.live:
                del self.held[held.record.id]

    async def _tell(self, held: Held) -> bool:
        """Tell Redis of one rollout; False if it has lost it, so that all is to be told again."""
        rollout_id = held.record.id
        if not held.known:
            record = encode_record(held.record)
            answer = await self._link.run(
                "add", rollout_id, held.record.owner, record, held.token, self._replica
            )
            self._check(held, answer)
            held.known, held.changed = True, held.changed or held.record.status != "queued"
            for name in [name for name, value in self._bound.items() if value.endswith(f" {rollout_id}")]:
                await self._claim(name, self._bound.pop(name), rollout_id)
        for name, replacing in list(held.unsaved.items()):
            try:
                answer = await self._upload(rollout_id, held.token, name, held.data[name], replacing)
            except StorageFailed:
                held.unsaved.pop(name, None)
                raise
            if not self._check(held, answer):
                return False
            held.unsaved.pop(name, None)
        return not held.changed or await self._tell_record(held)

    async def _tell_record(self, held: Held) -> bool:
        record, checkpoint, progress = held.record, held.checkpoint, held.progress
        data: tuple[Value, ...] = ("", "", "")
        if checkpoint is not None:
            data = (checkpoint.data, checkpoint.frames, checkpoint.chunks)
        status, encoded = record.status, encode_record(record)
        held.changed, held.progress = False, False
        try:
            answer, gone = await self._link.run(
                "write",
                record.id,
                held.token,
                encoded,
                status,
                int(progress),
                *data,
                *self._limits(),
                held.parked,
            )
        except StoreDown:
            held.changed, held.progress = True, progress
            raise
        if not self._check(held, answer):
            return False
        if held.checkpoint is checkpoint:
            held.checkpoint = None
        await self._clean(gone)
        return True

    async def _upload(
        self, rollout_id: str, token: str, name: str, data: bytes, replacing: Sequence[str]
    ) -> int:
        """Keep an artifact's bytes, then have them known; nobody else's are ever overwritten."""
        place = f"{rollout_id}/{quote(name, safe='')}.{uuid.uuid4().hex[:12]}"
        await self._blobs.put(place, data)
        answer, gone = await self._link.run(
            "artifact", rollout_id, token, name, place, len(data), *self._limits(), *replacing
        )
        await self._clean([*gone, place.encode()] if answer != DONE else gone)
        return int(answer)

    async def _claim(self, name: str, value: str, rollout_id: str) -> str:
        span = int(1000 * self._bounds.claim_seconds)
        bound: bytes = await self._link.run("claim", name, value, rollout_id, span)
        return bound.decode()

    def _check(self, held: Held, answer: int) -> bool:
        """False if Redis does not have the rollout any more."""
        if answer == FENCED:
            self._lose(held)
            raise LeaseLost(held.record.id)
        if answer == MISSING:
            held.forget()
        return answer == DONE

    def _lose(self, held: Held) -> None:
        if self.held.get(held.record.id) is held:
            del self.held[held.record.id]
        self.lost(held.record.id)

    async def _fail(self, held: Held, error: StorageFailed) -> None:
        """Its frames cannot be kept after all."""
        held.record.status = "failed"
        held.record.error = {"code": error.code, "message": str(error)}
        held.note(None)
        with suppress(LeaseLost):
            await self._write_back(held)

    def _drop_unsaved(self) -> None:
        """While Redis is away, what has ended is bounded here as it is there."""
        ended = [held for held in self.held.values() if not held.record.live and not held.lock.locked()]
        size, limit = sum(held.size for held in ended), self._clock() - self._bounds.ttl_seconds
        for index, held in enumerate(ended):
            old = (held.record.finished_at or held.record.created_at) < limit
            many = len(ended) - index > self._bounds.max_rollouts
            if old or many or size > self._bounds.max_bytes:
                size -= held.size
                del self.held[held.record.id]

    def _limits(self) -> tuple[Value, ...]:
        bounds = self._bounds
        return f"{self._clock():.6f}", bounds.ttl_seconds, bounds.max_rollouts, bounds.max_bytes

    async def _clean(self, places: Sequence[bytes]) -> None:
        """Remove bytes that nothing leads to any more."""
        try:
            await self._blobs.remove(texts(places))
        except (StoreDown, OSError) as error:
            logger.warning("the bytes of %d artifacts stay for now: %s", len(places), error)


def _progress(record: RolloutRecord) -> tuple[object, ...]:
    """What a reader sees change."""
    return record.status, record.started_at, len(record.chunks)


def _bring_up_to_date(record: RolloutRecord, fresh: RolloutRecord | None) -> None:
    if fresh is None:  # somebody removed it
        record.status = "cancelled"
        return
    for one in fields(record):
        setattr(record, one.name, getattr(fresh, one.name))
