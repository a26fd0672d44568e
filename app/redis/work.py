"""Accepted rollouts in a Redis stream: offered by one process, taken by any that has room."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from app.errors import ApiError, Unavailable
from app.redis.codec import decode_record, encode_record
from app.redis.link import Link
from app.store import Checkpoint, RolloutRecord
from app.work import Order

FULL_RETRY_SECONDS = 5


@dataclass(frozen=True)
class Taken:
    """A rollout that this process is to run.

    Attributes:
        entry: of the stream.
        token: to write it with.
        tries: how often it was begun before without finishing another chunk.
        takeover: somebody has run it before.
        suspect: it may be what ended those who tried, so it runs alone.
    """

    rollout_id: str
    entry: str
    token: str
    tries: int
    takeover: bool
    suspect: bool
    data: bytes
    order_data: bytes
    checkpoint: Checkpoint | None

    def record(self) -> RolloutRecord:
        """Its record."""
        return decode_record(self.data)

    def order(self) -> Order:
        """What is to be run."""
        return Order.model_validate_json(self.order_data)


class RedisQueue:
    """The stream and its consumer group.

    Args:
        replica: name of this process, and of its consumer.
        lease_seconds: silence after which a rollout may be taken over.
        tries: how often a rollout is begun without finishing another chunk.
        max_queue: most rollouts that have not ended.
        max_per_client: most of them of one client.
        limit_of: a client's own number in its place, if it has one.
    """

    def __init__(
        self,
        link: Link,
        replica: str,
        *,
        lease_seconds: float,
        tries: int,
        max_queue: int,
        max_per_client: int,
        limit_of: Callable[[str], int | None] = lambda client: None,
    ) -> None:
        self._link, self._replica = link, replica
        self._lease_ms, self._tries = int(1000 * lease_seconds), tries
        self._max_queue, self._max_per_client, self._limit_of = max_queue, max_per_client, limit_of

    async def offer(self, record: RolloutRecord, order: Order) -> None:
        limit = self._limit_of(order.client) or self._max_per_client
        answer = await self._link.run(
            "offer",
            record.id,
            record.owner,
            encode_record(record),
            order.model_dump_json(),
            order.client,
            self._max_queue,
            limit,
        )
        if answer == b"full":
            message = (
                f"{self._max_queue} asynchronous rollouts wait or run, which is the most; try again later"
            )
            raise Unavailable("queue_full", message, retry_after=FULL_RETRY_SECONDS)
        if answer == b"client":
            raise ApiError(
                429,
                "too_many_rollouts",
                f"at most {limit} rollouts of one client at a time; wait for some to end",
                headers={"Retry-After": str(FULL_RETRY_SECONDS)},
            )

    async def adopt(self, record: RolloutRecord, order: Order) -> None:
        await self._link.run("adopt", record.id, order.model_dump_json(), order.client)

    async def take(
        self, most: int, *, alone: bool, reclaim: bool, mine: Iterable[str]
    ) -> tuple[list[Taken], bool]:
        """Rollouts to run.

        Args:
            most: of them.
            alone: whether nothing else runs here.
            reclaim: whether those of silent processes may be taken over.
            mine: what runs here.

        Returns:
            What was taken, and whether something was left that must run alone.

        Raises:
            StoreDown: nobody knows.
        """
        taken, left = await self._link.run(
            "take",
            self._replica,
            self._lease_ms,
            most,
            self._tries,
            int(alone),
            int(reclaim),
            f"{uuid.uuid4().hex}:",
            *mine,
        )
        return [_taken(row) for row in taken], bool(left)

    async def release(self, taken: Taken, *, counts: bool, rest_seconds: float = 0.0) -> bool:
        """Let go of a rollout, for others to take; False if it was somebody else's.

        Args:
            taken: the rollout.
            counts: whether this was a try.
            rest_seconds: how long nobody takes it.
        """
        silent = max(0, self._lease_ms - int(1000 * rest_seconds))
        return bool(
            await self._link.run("release", taken.rollout_id, taken.token, self._replica, silent, int(counts))
        )

    def spent(self, taken: Taken) -> bool:
        """Whether it was begun often enough."""
        return taken.tries >= self._tries

    async def length(self) -> int:
        """Rollouts that wait or run."""
        return int(await self._link.call("XLEN", f"{self._link.prefix}work"))


def _taken(row: list[Any]) -> Taken:
    rollout_id, entry, token, tries, takeover, suspect, record, order, data, frames, chunks = row
    checkpoint = Checkpoint(data, int(frames), int(chunks)) if data else None
    return Taken(
        rollout_id.decode(),
        entry.decode(),
        token.decode(),
        tries,
        bool(takeover),
        bool(suspect),
        record,
        order,
        checkpoint,
    )
