"""The codec and the connection."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest

from app.redis.codec import UnreadableRecord, decode_record, encode_record
from app.redis.link import Link
from app.schemas import OutputBody
from app.store import RolloutRecord, StoreDown
from tests.app.redis.server import RedisServer
from worldcache.core import ChunkStats, ModalityStats, RolloutStats


def a_record() -> RolloutRecord:
    chunk = ChunkStats(
        1,
        "F.",
        (None, float("inf")),
        {"rgb": {"stable": 0.5}},
        token_map=np.zeros(4, np.int8),
        token_grids={"rgb": (1, 2, 2)},
        modalities={"rgb": ModalityStats(3, 6, 0.1)},
    )
    record = RolloutRecord("ro", "me", "toy", "none", 7, 8, OutputBody(inline=True), {"a": "b"})
    record.chunks, record.chunk_ends = [chunk, chunk], [4, 8]
    record.stats = RolloutStats("none", (chunk, chunk), 1.0, 2.0, 3.0)
    return record


def test_token_maps_are_left_out_and_everything_else_stays() -> None:
    record = a_record()
    found = decode_record(encode_record(record))
    assert found.chunks[0].token_map is None and found.chunks[0].token_grids == {}
    assert found.chunks[0].drift == (None, float("inf"))
    assert found.chunks[0].modalities == record.chunks[0].modalities
    assert found.stats is not None and found.stats.chunks == tuple(found.chunks)
    assert encode_record(found) == encode_record(record)


def test_statistics_of_other_chunks_than_the_records_stay_their_own() -> None:
    record = a_record()
    assert record.stats is not None
    record.chunks = record.chunks[:1]
    found = decode_record(encode_record(record))
    assert found.stats is not None and (len(found.chunks), len(found.stats.chunks)) == (1, 2)


def test_versions() -> None:
    document = json.loads(encode_record(a_record()))
    document["record"]["of_tomorrow"] = document["record"]["chunks"][0]["of_tomorrow"] = 1
    assert decode_record(json.dumps(document).encode()).id == "ro"
    del document["record"]["takeovers"]
    assert decode_record(json.dumps(document).encode()).takeovers == 0
    document["version"] = 2
    with pytest.raises(UnreadableRecord, match="newer version"):
        decode_record(json.dumps(document).encode())


def test_a_connection_that_was_closed_while_idle_is_no_outage(redis_server: RedisServer) -> None:
    told: list[bool] = []

    async def run() -> None:
        link = Link(redis_server.url, "parts:", told.append)
        await link.start()
        await asyncio.gather(*(link.call("PING") for _ in range(5)))
        redis_server.client().client_kill_filter(_type="normal", skipme=True)
        assert await asyncio.gather(*(link.call("PING") for _ in range(5)))
        await link.close()

    asyncio.run(run())
    assert told == [False, True]


def test_a_redis_that_hangs_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.redis.link.ANSWER_SECONDS", 0.3)
    server = RedisServer(tmp_path)
    server.start()

    async def run() -> None:
        link = Link(server.url, "parts:", lambda up: None)
        await link.start()
        server.pause()
        with pytest.raises(StoreDown):
            await link.call("PING")
        began = asyncio.get_running_loop().time()
        with pytest.raises(StoreDown):
            await link.call("PING")
        assert asyncio.get_running_loop().time() - began < 0.3  # at once
        server.go_on()
        while not link.up:
            await asyncio.sleep(0.05)
        assert await link.call("PING")
        await link.close()

    try:
        asyncio.run(run())
    finally:
        server.kill()


def test_scripts_are_known_again_after_redis_has_forgotten_them(redis_server: RedisServer) -> None:
    async def run() -> None:
        link = Link(redis_server.url, "parts:", lambda up: None)
        await link.start()
        for _ in range(2):
            redis_server.client().script_flush()
            assert await link.run("list", "me", 5, "", "") == []
        await link.close()

    asyncio.run(run())
