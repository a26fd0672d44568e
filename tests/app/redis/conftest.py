"""A Redis server for each module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.app.redis.server import RedisServer


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()
