"""Rates that several servers count together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from app.ratelimit import Rate
from app.redis.keys import Keys
from app.redis.limits import RedisRateLimiter
from app.redis.link import Link
from tests.app.conftest import rollout_body
from tests.app.redis.server import RedisServer
from tests.app.redis.test_service import LATER, replica, slow
from tests.app.test_keys import table
from tests.toy import ToyWorldModel


def limited(server: RedisServer, prefix: str, check: Callable[[RedisRateLimiter], Awaitable[None]]) -> None:
    async def run() -> None:
        link = Link(server.url, prefix, lambda up: None)
        await link.start()
        await check(RedisRateLimiter(link, Keys(prefix)))
        await link.close()

    asyncio.run(run())


def test_a_burst_then_the_rate(redis_server: RedisServer) -> None:
    rate = Rate(per_minute=120, burst=3)  # a token every half second

    async def check(limiter: RedisRateLimiter) -> None:
        assert [await limiter.take("a", rate) for _ in range(3)] == [0, 0, 0]
        wait = await limiter.take("a", rate)
        assert 0 < wait <= 0.5
        assert await limiter.take("b", rate) == 0
        await asyncio.sleep(wait + 0.01)
        assert await limiter.take("a", rate) == 0
        assert await limiter.take("a", rate) > 0

    limited(redis_server, "limits:", check)
    assert 0 < redis_server.client().pttl("limits:rate:a") <= 3000


def test_each_server_counts_by_itself_while_redis_is_away(tmp_path: Path) -> None:
    async def check(limiter: RedisRateLimiter) -> None:
        assert await limiter.take("a", Rate(60, 1)) == 0
        assert await limiter.take("a", Rate(60, 1)) == pytest.approx(1, abs=0.1)

    limited(RedisServer(tmp_path), "limits:", check)


def test_servers_share_a_keys_rate_and_concurrency(redis_server: RedisServer, tmp_path: Path) -> None:
    key = "k" * 40
    file = tmp_path / "keys.toml"
    file.write_text(table("alice", key, rate="6", burst="4", concurrency="1"))
    settings = {"api_keys_file": str(file)}
    with (
        replica(redis_server, "keys:", ToyWorldModel(delay=0.02), **settings) as one,
        replica(redis_server, "keys:", ToyWorldModel(delay=0.02), **settings) as other,
    ):
        began = time.monotonic()
        for client in (one, other):
            client.headers["Authorization"] = f"Bearer {key}"
        accepted = one.post("/v1/rollouts", json=slow(), headers=LATER)
        assert accepted.status_code == 202
        refused = other.post("/v1/rollouts", json=rollout_body(), headers=LATER)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_rollouts")
        assert other.delete(accepted.headers["location"]).status_code == 200
        codes = [client.get("/v1/models").status_code for client in (one, other, one)]
        assert codes == [200, 429, 429] or time.monotonic() - began > 10
