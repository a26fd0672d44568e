"""Artifacts as strings in Redis. The scripts of the store let go of them."""

from __future__ import annotations

from collections.abc import Sequence

from app.redis.keys import Keys
from app.redis.link import Link

STRAY_MS = 3_600_000
"""Bytes that no rollout has asked for after this long go by themselves."""


class RedisArtifacts:
    """Bytes beside the records. Until the store takes note of them, they have a time to live."""

    def __init__(self, link: Link, keys: Keys) -> None:
        self._link, self._keys = link, keys

    async def put(self, key: str, data: bytes) -> None:
        await self._link.call("SET", self._keys.blob(key), data, "PX", STRAY_MS)

    async def get(self, key: str) -> bytes | None:
        data: bytes | None = await self._link.call("GET", self._keys.blob(key))
        return data

    async def remove(self, keys: Sequence[str]) -> None:
        if keys:
            await self._link.call("UNLINK", *(self._keys.blob(key) for key in keys))

    async def strays(self, seconds: float) -> list[str]:
        return []

    async def remove_rollout(self, rollout_id: str) -> None:
        """Nothing: what the store forgets is gone."""
