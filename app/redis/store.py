"""The store in Redis, behind the same interface as the one in memory.

Rollouts of this process are kept here as well until Redis has heard of their end: so they go on while Redis
is away, and are written down when it is back.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import fields

from app.artifacts import ArtifactStore, StorageFailed
from app.redis.changes import Changes
from app.redis.codec import decode_record, encode_record
from app.redis.holdings import Bounds, Holdings
from app.redis.keys import Keys
from app.redis.link import Link, texts
from app.redis.scripts import DONE, FENCED
from app.store import Checkpoint, LeaseLost, RolloutRecord, StoreDown

POLL_SECONDS = 1.0
"""Between two looks at a rollout of another process, if nothing is heard of it."""

MAX_KEYS = 10_000
"""Idempotency keys that are remembered while Redis is away."""


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
        self._link, self._keys, self._blobs, self._bounds = link, keys, artifacts, bounds
        self._bound: OrderedDict[str, str] = OrderedDict()
        self.changes: Changes | None = None
        self.held = Holdings(link, replica, artifacts, bounds, lost=lost, added=self._bind_keys, clock=clock)

    async def add(self, record: RolloutRecord) -> None:
        await self.held.begin(record)

    async def save(self, record: RolloutRecord, checkpoint: Checkpoint | None = None) -> None:
        held = self.held.get(record.id)
        if held is None:
            raise LeaseLost(record.id)
        held.note(checkpoint)
        await self.held.tell(held)

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
                "end", record.id, found[1], encode_record(fresh), fresh.status, *self.held.limits()
            )
            if answer == DONE:
                _bring_up_to_date(record, fresh)
                await self.held.clean(gone)
                return True

    async def remove(self, rollout_id: str) -> None:
        self.held.drop(rollout_id)
        gone = await self._link.run("remove", rollout_id, int(1000 * self._bounds.removed_seconds))
        await self.held.clean(gone)

    async def list(
        self, owner: str, *, limit: int, after: str | None, status: str | None
    ) -> list[RolloutRecord]:
        found = await self._link.run("list", owner, limit, after or "", status or "")
        records = [decode_record(data) for data in found]
        own = [self.held.get(record.id) for record in records]
        return [found.record if found else record for found, record in zip(own, records, strict=True)]

    async def put_artifact(
        self, rollout_id: str, name: str, data: bytes, *, replacing: Sequence[str] = ()
    ) -> None:
        held = self.held.get(rollout_id)
        if held is not None:
            held.keep(name, data, replacing)
            try:
                await self.held.tell(held)
            except StorageFailed:
                held.data.pop(name, None)
                raise
            return
        with suppress(StoreDown):  # it can be made again
            if await self.held.upload(rollout_id, "", name, data, replacing) == FENCED:
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

    async def sweep(self) -> Sequence[str]:
        """Let go of what is old; the rollouts whose process is gone and that nobody can go on with."""
        gone, orphans = await self._link.run("sweep", *self.held.limits())
        await self.held.clean(gone)
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

    async def _bind_keys(self, rollout_id: str) -> None:
        """Tell Redis of the keys of a rollout that it had not heard of."""
        for name in [name for name, value in self._bound.items() if value.endswith(f" {rollout_id}")]:
            await self._claim(name, self._bound.pop(name), rollout_id)

    async def _claim(self, name: str, value: str, rollout_id: str) -> str:
        span = int(1000 * self._bounds.claim_seconds)
        bound: bytes = await self._link.run("claim", name, value, rollout_id, span)
        return bound.decode()


def _progress(record: RolloutRecord) -> tuple[object, ...]:
    """What a reader sees change."""
    return record.status, record.started_at, len(record.chunks)


def _bring_up_to_date(record: RolloutRecord, fresh: RolloutRecord | None) -> None:
    if fresh is None:  # somebody removed it
        record.status = "cancelled"
        return
    for one in fields(record):
        value = getattr(fresh, one.name)
        setattr(record, one.name, value.copy() if isinstance(value, list) else value)  # its owner appends
