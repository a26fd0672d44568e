"""What every store promises: in memory and in Redis, artifacts in memory, in files and in Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from app.artifacts import ArtifactStore, FileArtifacts, MemoryArtifacts
from app.redis.artifacts import RedisArtifacts
from app.redis.holdings import Bounds
from app.redis.keys import Keys
from app.redis.link import Link
from app.redis.store import RedisStore
from app.schemas import OutputBody
from app.store import InMemoryStore, RolloutRecord, Store
from tests.app.redis.server import RedisServer
from worldcache.core import ChunkStats, ModalityStats, RolloutStats

KINDS = ("memory", "memory and files", "redis", "redis and files")


@dataclass
class Clock:
    now: float = 1e9

    def __call__(self) -> float:
        return self.now


Check = Callable[[Store, Clock], Awaitable[None]]
Runner = Callable[..., None]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    running = RedisServer(tmp_path_factory.mktemp("redis"))
    running.start()
    yield running
    running.kill()


@asynccontextmanager
async def opened(
    kind: str, server: RedisServer, folder: Path, clock: Clock, bounds: Bounds
) -> AsyncIterator[Store]:
    place, _, apart = kind.partition(" and ")
    files: ArtifactStore | None = FileArtifacts(folder) if apart else None
    if place == "memory":
        yield InMemoryStore(
            max_rollouts=bounds.max_rollouts,
            max_bytes=bounds.max_bytes,
            ttl_seconds=bounds.ttl_seconds,
            artifacts=files or MemoryArtifacts(),
            clock=clock,
        )
        return
    keys = Keys(f"{folder.name}:")
    link = Link(server.url, keys.prefix, lambda up: None)
    await link.start()
    yield RedisStore(link, keys, "test", files or RedisArtifacts(link, keys), bounds, clock=clock)
    await link.close()


@pytest.fixture(params=KINDS)
def run(request: pytest.FixtureRequest, server: RedisServer, tmp_path: Path) -> Runner:
    """Runs a check against a store."""

    def check(what: Check, **bounds: Any) -> None:
        async def within() -> None:
            limits = Bounds(**{"max_rollouts": 100, "max_bytes": 10**6, "ttl_seconds": 60.0, **bounds})
            clock = Clock()
            async with opened(request.param, server, tmp_path, clock, limits) as store:
                await what(store, clock)

        asyncio.run(within())

    return check


def record(rollout_id: str = "ro_1", **values: Any) -> RolloutRecord:
    defaults: dict[str, Any] = {
        "owner": "me",
        "model": "toy",
        "policy": "none",
        "seed": 2**63 - 1,
        "frames": 8,
        "output": OutputBody(format="webp", modalities=["rgb"], fps=12.5),
        "metadata": {"run": "Größe"},
        "created_at": 1e9,
    }
    return RolloutRecord(rollout_id, **{**defaults, **values})


async def end(store: Store, one: RolloutRecord, status: str = "succeeded") -> None:
    one.status, one.finished_at = status, one.created_at
    await store.save(one)


def test_a_record_comes_back_as_it_was_saved(run: Runner) -> None:
    chunk = ChunkStats(
        0,
        "F..F",
        (None, 0.5, 1.0, 0.0),
        {"rgb": {"stable": 0.25}},
        modalities={"rgb": ModalityStats(3, 6, None)},
    )

    async def check(store: Store, clock: Clock) -> None:
        one = record(deadline_ms=5.0, deadline_at=1e9 + 5, chosen="x", expected_seconds=0.1)
        await store.add(one)
        assert await store.get("ro_1") == one
        one.status, one.started_at = "running", 1e9 + 1
        one.chunks.append(chunk)
        one.chunk_ends.append(4)
        await store.save(one)
        one.stats = RolloutStats("none", (chunk,), 0.5, 0.75, 1.5)
        one.error = {"code": "x", "message": "y"}
        await end(store, one, "failed")
        assert await store.get("ro_1") == one
        assert await store.get("ro_2") is None

    run(check)


def test_lists_are_an_owners_newest_first(run: Runner) -> None:
    async def check(store: Store, clock: Clock) -> None:
        for number in range(5):
            await store.add(record(f"ro_{number}", owner="me" if number != 2 else "you"))
        await end(store, (await store.get("ro_3")) or record())

        async def ids(owner: str = "me", **query: Any) -> list[str]:
            wanted: dict[str, Any] = {"limit": 10, "after": None, "status": None, **query}
            return [one.id for one in await store.list(owner, **wanted)]

        assert await ids() == ["ro_4", "ro_3", "ro_1", "ro_0"]
        assert await ids("you") == ["ro_2"]
        assert await ids("nobody") == []
        assert await ids(limit=2) == ["ro_4", "ro_3"]
        assert await ids(limit=2, after="ro_3") == ["ro_1", "ro_0"]
        assert await ids(after="ro_2") == []
        assert await ids(status="succeeded") == ["ro_3"]
        assert await ids(status="queued", limit=2) == ["ro_4", "ro_1"]
        assert await ids(status="queued", after="ro_3") == ["ro_1", "ro_0"]

    run(check)


def test_artifacts_belong_to_a_rollout(run: Runner) -> None:
    async def check(store: Store, clock: Clock) -> None:
        one = record()
        await store.put_artifact("ro_1", "early", b"x")
        await store.add(one)
        assert await store.get_artifact("ro_1", "early") is None
        await store.put_artifact("ro_1", "chunks/0.npz", b"zero")
        await store.put_artifact("ro_1", "chunks/1.npz", b"one")
        await store.put_artifact("ro_1", "../../etc/passwd", b"\0\xff" * 100)
        assert await store.get_artifact("ro_1", "chunks/1.npz") == b"one"
        assert await store.get_artifact("ro_1", "../../etc/passwd") == b"\0\xff" * 100
        await store.put_artifact("ro_1", "chunks/1.npz", b"two")
        assert await store.get_artifact("ro_1", "chunks/1.npz") == b"two"
        names = ["chunks/0.npz", "chunks/1.npz"]
        await store.put_artifact("ro_1", "frames.npz", b"all", replacing=names)
        await end(store, one)
        assert [await store.get_artifact("ro_1", name) for name in names] == [None, None]
        assert await store.get_artifact("ro_1", "frames.npz") == b"all"
        await store.put_artifact("ro_1", "rgb.mp4", b"video")
        assert await store.get_artifact("ro_1", "rgb.mp4") == b"video"
        assert await store.get_artifact("ro_2", "rgb.mp4") is None
        await store.remove("ro_1")
        assert await store.get("ro_1") is None
        assert await store.get_artifact("ro_1", "rgb.mp4") is None
        assert await store.list("me", limit=9, after=None, status=None) == []

    run(check)


def test_the_oldest_go_first_and_live_ones_stay(run: Runner) -> None:
    async def check(store: Store, clock: Clock) -> None:
        for number in range(5):
            one = record(f"ro_{number}", created_at=1e9 + number)
            await store.add(one)
            if number != 1:
                await end(store, one)
        found = [await store.get(f"ro_{number}") for number in range(5)]
        assert [one is not None for one in found] == [False, True, False, True, True]

    run(check, max_rollouts=2)


def test_bytes_are_bounded(run: Runner) -> None:
    async def check(store: Store, clock: Clock) -> None:
        for number in range(3):
            one = record(f"ro_{number}", created_at=1e9 + number)
            await store.add(one)
            await store.put_artifact(one.id, "a", bytes(400))
            await store.put_artifact(one.id, "a", bytes(400))  # in place of the former
            await end(store, one)
        found = [await store.get_artifact(f"ro_{number}", "a") for number in range(3)]
        assert [data is not None for data in found] == [False, True, True]
        await store.put_artifact("ro_2", "b", bytes(400))
        assert await store.get("ro_1") is None
        assert await store.get_artifact("ro_2", "b") == bytes(400)

    run(check, max_bytes=1000)


def test_finished_rollouts_expire_and_live_ones_do_not(run: Runner) -> None:
    async def check(store: Store, clock: Clock) -> None:
        live, old = record("ro_live"), record("ro_old")
        for one in (live, old):
            await store.add(one)
            await store.put_artifact(one.id, "a", b"a")
        await end(store, old)
        clock.now += 61
        await store.add(record("ro_new", created_at=clock.now))
        await end(store, await store.get("ro_new") or record())
        assert await store.get("ro_old") is None
        assert await store.get_artifact("ro_old", "a") is None
        assert await store.get("ro_live") is live
        assert await store.get_artifact("ro_live", "a") == b"a"

    run(check)


def test_idempotency_keys_stand_for_one_rollout(run: Runner) -> None:
    async def check(store: Store, clock: Clock) -> None:
        assert await store.claim_key("me", "key", "digest", "ro_1") == ("digest", "ro_1")
        assert await store.claim_key("me", "key", "other", "ro_2") == ("digest", "ro_1")
        assert await store.claim_key("you", "key", "digest", "ro_3") == ("digest", "ro_3")
        assert await store.claim_key("me", "\ud800 \n", "digest", "ro_4") == ("digest", "ro_4")
        await store.release_key("me", "key")
        assert await store.claim_key("me", "key", "other", "ro_2") == ("other", "ro_2")
        one = record("ro_2")
        await store.add(one)
        await end(store, one)
        assert await store.claim_key("me", "key", "third", "ro_5") == ("other", "ro_2")
        await store.remove("ro_2")
        assert await store.claim_key("me", "key", "third", "ro_5") == ("third", "ro_5")

    run(check)


def test_nobody_else_runs_what_this_process_runs(run: Runner) -> None:
    async def check(store: Store, clock: Clock) -> None:
        one = record()
        await store.add(one)
        assert await store.get("ro_1") is one
        assert not await store.wait_changed(one)

    run(check)
