"""Rates of requests that all servers of one Redis count together."""

from __future__ import annotations

from app.ratelimit import InMemoryRateLimiter, Rate
from app.redis.keys import Keys
from app.redis.link import Link
from app.store import StoreDown


class RedisRateLimiter:
    """Token buckets in Redis, by its clock; each server's own while Redis is away."""

    def __init__(self, link: Link, keys: Keys) -> None:
        self._link, self._keys, self._spare = link, keys, InMemoryRateLimiter()

    async def take(self, name: str, rate: Rate) -> float:
        """Seconds until there is a token; 0 if one was taken."""
        try:
            wait = await self._link.run("rate", self._keys.rate(name), rate.per_minute / 60, rate.burst)
        except StoreDown:
            return await self._spare.take(name, rate)
        return int(wait) / 1e6
