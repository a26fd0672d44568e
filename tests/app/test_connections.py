"""Clients that are slow on purpose. The server answers others meanwhile, and closes what costs too much.

The number of connections comes from ``DRILL_CONNECTIONS``; drills ask for ten thousand.
"""

from __future__ import annotations

import json
import os
import resource
import selectors
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from app.connections import MAX_HEAD_BYTES
from app.serving import AnnouncingServer, make_server
from tests.app.conftest import rollout_body, serving
from tests.app.test_rollouts import metric

CONNECTIONS = int(os.environ.get("DRILL_CONNECTIONS", "500"))
HEAD = b"GET /livez HTTP/1.1\r\nHost: x\r\n"


@pytest.fixture(scope="module")
def strict() -> Iterator[httpx.Client]:
    """A server without patience."""
    with serving(header_seconds=0.5, body_seconds=0.5, stall_seconds=0.5) as client:
        yield client


def connect(client: httpx.Client, buffer: int | None = None) -> socket.socket:
    connection = socket.socket()
    if buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    connection.settimeout(20)
    connection.connect((client.base_url.host, client.base_url.port))
    return connection


def read_to_the_end(connection: socket.socket) -> bytes:
    data = b""
    while part := connection.recv(65536):
        data += part
    return data


def refusal(answer: bytes) -> tuple[int, str]:
    """Status and code of an answer in the envelope."""
    head, _, body = answer.partition(b"\r\n\r\n")
    error = json.loads(body)["error"]
    assert error["request_id"] and error["message"]
    return int(head.split()[1]), error["code"]


@pytest.mark.parametrize("sent", [b"", b"G", HEAD, HEAD + b"X-Slow: "])
def test_headers_that_do_not_come_are_not_waited_for(strict: httpx.Client, sent: bytes) -> None:
    with connect(strict) as connection:
        connection.sendall(sent)
        assert refusal(read_to_the_end(connection)) == (408, "request_timeout")


def test_headers_that_trickle_in_are_not_waited_for(strict: httpx.Client) -> None:
    with connect(strict) as connection:
        try:
            for letter in HEAD * 100:
                connection.sendall(bytes([letter]))
                time.sleep(0.02)
        except OSError:
            return  # closed under our hands
        raise AssertionError("the server listened to it all")


def test_a_second_request_has_time_of_its_own(strict: httpx.Client) -> None:
    with connect(strict) as connection:
        for _ in range(3):
            connection.sendall(HEAD)
            time.sleep(0.3)
            connection.sendall(b"\r\n")
            assert b"200 OK" in connection.recv(65536)
        connection.sendall(HEAD)
        assert refusal(read_to_the_end(connection)) == (408, "request_timeout")


def test_headers_that_do_not_end_are_refused(strict: httpx.Client) -> None:
    with connect(strict) as connection:
        connection.sendall(HEAD + b"X-Long: " + b"a" * (MAX_HEAD_BYTES - len(HEAD)))
        assert refusal(read_to_the_end(connection)) == (431, "headers_too_large")


def test_a_body_that_does_not_come_is_not_waited_for(strict: httpx.Client) -> None:
    for kind in (b"Content-Length: 1000", b"Transfer-Encoding: chunked"):
        with connect(strict) as connection:
            head = b"POST /v1/rollouts HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            connection.sendall(head + kind + b"\r\n\r\n")
            assert refusal(read_to_the_end(connection)) == (408, "request_timeout")


def test_a_slow_rollout_is_no_slow_client(strict: httpx.Client) -> None:
    """Twelve seconds of nothing would be too long for headers; an answer may take what it takes."""
    with connect(strict) as connection:
        body = json.dumps(rollout_body(cache="none", actions=["NOOP"] * 64)).encode()
        connection.sendall(
            b"POST /v1/rollouts HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body
        )
        assert b"200 OK" in read_to_the_end(connection)[:20]


def test_one_byte_a_second_holds_nothing_up(strict: httpx.Client) -> None:
    """A stream's rollout ends although nobody reads it, and others are served meanwhile."""
    body = json.dumps(rollout_body(actions=["MOVE_LEFT"] * 256, stream=True, cache="fast")).encode()
    with connect(strict, buffer=4096) as connection:
        connection.sendall(
            b"POST /v1/rollouts HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body) + body
        )
        assert connection.recv(1)
        assert strict.post("/v1/rollouts", json=rollout_body()).status_code == 200
        for _ in range(500):
            if metric(strict, "worldcache_active_rollouts", model="toy") == 0:
                return
            time.sleep(0.02)
        raise AssertionError("the rollout is still running")


def test_a_client_that_hardly_reads_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    servers: list[AnnouncingServer] = []

    def make(app: FastAPI, **options: Any) -> AnnouncingServer:
        servers.append(make_server(app, **options))
        return servers[0]

    monkeypatch.setattr("tests.app.conftest.make_server", make)
    path = "/docs/assets/swagger-ui-bundle.js"
    with serving(stall_seconds=0.5) as client:
        size = len(client.get(path).content)
        with socket.socket(fileno=os.dup(servers[0].servers[0].sockets[0].fileno())) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)  # connections inherit it
        with connect(client, buffer=4096) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            for _ in range(8):
                assert connection.recv(1)
                time.sleep(0.25)
            rest = 0
            with suppress(ConnectionError):
                while part := connection.recv(65536):
                    rest += len(part)
            assert rest < size / 2, "the rest was waited for"
        assert client.get("/livez").status_code == 200


def test_many_slow_connections_leave_the_server_responsive() -> None:
    """They are closed for new ones when they are too many, and all of them in the end."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    count = min(CONNECTIONS, hard - 2000)
    try:
        with (
            serving(header_seconds=3.0, max_connections=max(10, count // 5)) as client,
            ExitStack() as stack,
            selectors.DefaultSelector() as selector,
        ):
            for number in range(count):
                connection = stack.enter_context(connect(client))
                connection.sendall(HEAD)
                selector.register(connection, selectors.EVENT_READ)
                if number % (count // 10) == 0:
                    fresh = httpx.get(client.base_url.join("/livez"), timeout=20)
                    assert fresh.status_code == 200
            assert client.post("/v1/rollouts", json=rollout_body()).status_code == 200
            deadline = time.monotonic() + 60
            while selector.get_map() and time.monotonic() < deadline:
                for key, _ in selector.select(1):
                    selector.unregister(key.fileobj)
            assert not selector.get_map(), f"{len(selector.get_map())} of {count} are still open"
            assert client.get("/livez").status_code == 200
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_where_every_connection_is_at_work_further_ones_are_refused() -> None:
    with serving(max_connections=1) as client:
        head = b"POST /v1/rollouts HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"
        client.close()
        with connect(client) as busy:
            busy.sendall(head)
            time.sleep(0.2)
            with connect(client) as refused:
                assert refusal(read_to_the_end(refused)) == (503, "too_many_connections")
