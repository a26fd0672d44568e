"""What this process runs, and telling Redis of it: at once, or when Redis is back."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import quote

from app.artifacts import ArtifactStore, StorageFailed
from app.redis.codec import encode_record
from app.redis.held import Held
from app.redis.link import Link, Value, texts
from app.redis.scripts import DONE, FENCED, MISSING
from app.store import LeaseLost, RolloutRecord, StoreDown

logger = logging.getLogger(__name__)


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


class Holdings:
    """Rollouts that this process alone may write.

    Args:
        replica: name of this process.
        artifacts: where the bytes are.
        lost: told of a rollout that it may not write any more.
        added: called with a rollout's id when Redis has heard of it.
    """

    def __init__(
        self,
        link: Link,
        replica: str,
        artifacts: ArtifactStore,
        bounds: Bounds,
        *,
        lost: Callable[[str], None],
        added: Callable[[str], Awaitable[None]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._link, self._replica, self._blobs = link, replica, artifacts
        self._bounds, self._clock, self._lost, self._added = bounds, clock, lost, added
        self._held: dict[str, Held] = {}

    def __contains__(self, rollout_id: str) -> bool:
        return rollout_id in self._held

    def get(self, rollout_id: str) -> Held | None:
        """The rollout with this id, if it is one of them."""
        return self._held.get(rollout_id)

    async def begin(self, record: RolloutRecord) -> None:
        """A new rollout."""
        held = self._held[record.id] = Held(record, uuid.uuid4().hex, known=False, changed=not record.live)
        await self.tell(held)

    def hold(self, record: RolloutRecord, token: str) -> Held:
        """A rollout that was taken to be run here."""
        held = self._held[record.id] = Held(record, token)
        return held

    def drop(self, rollout_id: str) -> None:
        """It is none of them any more."""
        self._held.pop(rollout_id, None)

    async def tell(self, held: Held) -> None:
        """Tell Redis what it has not heard of a rollout; all of it, or as much as can be.

        Raises:
            LeaseLost: it is not this process's any more.
            StorageFailed: there is no room for an artifact, which is not tried again.
        """
        async with held.lock:
            if self._held.get(held.record.id) is not held:
                raise LeaseLost(held.record.id)
            try:
                if not await self._tell(held):
                    await self._tell(held)
            except StoreDown:
                return
            if held.saved and not held.record.live:
                del self._held[held.record.id]

    async def settle(self, held: Held) -> None:
        """Tell Redis what it has not heard of one rollout, before it is let go of."""
        if not held.saved:
            with suppress(LeaseLost, StorageFailed):
                await self.tell(held)

    async def write_back(self) -> None:
        """Tell Redis what it has not heard, after it was away; what has ended is bounded meanwhile."""
        for held in list(self._held.values()):
            if held.saved:
                continue
            try:
                await self.tell(held)
            except LeaseLost:
                logger.warning("rollout %s is others' now", held.record.id)
            except StorageFailed as error:
                await self._fail(held, error)
        self._drop_unsaved()

    async def beat(self, span_ms: int) -> None:
        """Show that this process lives, and find out which rollouts are still its own."""
        known = [held for held in self._held.values() if held.known]
        pairs: list[Value] = [part for held in known for part in (held.record.id, held.token)]
        states = await self._link.run("beat", self._replica, span_ms, *pairs)
        for held, state in zip(known, states, strict=True):
            if self._held.get(held.record.id) is not held or held.lock.locked():
                continue
            if state == FENCED:
                self._lose(held)
            elif state == MISSING:
                logger.warning("Redis has lost rollout %s; it is written again", held.record.id)
                held.forget()

    async def upload(
        self, rollout_id: str, token: str, name: str, data: bytes, replacing: Sequence[str]
    ) -> int:
        """Keep an artifact's bytes, then have them known; nobody else's are ever overwritten."""
        place = f"{rollout_id}/{quote(name, safe='')}.{uuid.uuid4().hex[:12]}"
        await self._blobs.put(place, data)
        answer, gone = await self._link.run(
            "artifact", rollout_id, token, name, place, len(data), *self.limits(), *replacing
        )
        await self.clean([*gone, place.encode()] if answer != DONE else gone)
        return int(answer)

    async def clean(self, places: Sequence[bytes]) -> None:
        """Remove bytes that nothing leads to any more."""
        try:
            await self._blobs.remove(texts(places))
        except (StoreDown, OSError) as error:
            logger.warning("the bytes of %d artifacts stay for now: %s", len(places), error)

    def limits(self) -> tuple[Value, ...]:
        """For the scripts: now, and how much is kept."""
        bounds = self._bounds
        return f"{self._clock():.6f}", bounds.ttl_seconds, bounds.max_rollouts, bounds.max_bytes

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
            await self._added(rollout_id)
        for name, replacing in list(held.unsaved.items()):
            if name not in held.unsaved:
                continue  # something took its place meanwhile
            try:
                answer = await self.upload(rollout_id, held.token, name, held.data[name], replacing)
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
                *self.limits(),
                held.parked,
            )
        except StoreDown:
            held.changed, held.progress = True, progress
            raise
        if not self._check(held, answer):
            return False
        if held.checkpoint is checkpoint:
            held.checkpoint = None
        await self.clean(gone)
        return True

    def _check(self, held: Held, answer: int) -> bool:
        """False if Redis does not have the rollout any more."""
        if answer == FENCED:
            self._lose(held)
            raise LeaseLost(held.record.id)
        if answer == MISSING:
            held.forget()
        return answer == DONE

    def _lose(self, held: Held) -> None:
        if self._held.get(held.record.id) is held:
            del self._held[held.record.id]
        self._lost(held.record.id)

    async def _fail(self, held: Held, error: StorageFailed) -> None:
        """Its frames cannot be kept after all."""
        held.record.status = "failed"
        held.record.error = {"code": error.code, "message": str(error)}
        held.note(None)
        with suppress(LeaseLost):
            await self.tell(held)

    def _drop_unsaved(self) -> None:
        """While Redis is away, what has ended is bounded here as it is there."""
        ended = [held for held in self._held.values() if not held.record.live and not held.lock.locked()]
        size, limit = sum(held.size for held in ended), self._clock() - self._bounds.ttl_seconds
        for index, held in enumerate(ended):
            old = (held.record.finished_at or held.record.created_at) < limit
            many = len(ended) - index > self._bounds.max_rollouts
            if old or many or size > self._bounds.max_bytes:
                size -= held.size
                del self._held[held.record.id]
