"""The WebSocket of a server that is a process: clients that do not read, and signals."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import httpx
import pytest

from app.loadtest.server import resident_memory
from tests.app.sockets import driving
from tests.app.test_rollouts import metric
from tests.app.test_session_socket import closing_code
from tests.app.test_sessions import opened

pytestmark = [pytest.mark.server, pytest.mark.slow]

ROOT = Path(__file__).parents[2]

SERVE = """
import sys
from app.main import create_app
from app.serving import serve
from app.settings import Settings
from tests.toy import ToyWorldModel
settings = Settings(drain_seconds=1, session_outbox_frames=8)
app = create_app(settings, models_by_name={"toy": ToyWorldModel()})
serve(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", timeout_graceful_shutdown=3)
"""

BUFFER = 8192


@contextlib.contextmanager
def process_serving() -> Iterator[tuple[httpx.Client, subprocess.Popen[bytes]]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-c", SERVE, str(port)], cwd=ROOT)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            for _ in range(600):
                try:
                    if client.get("/readyz").status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                time.sleep(0.1)
            yield client, process
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def small_socket(client: httpx.Client) -> Iterator[socket.socket]:
    """A connection whose buffer is soon full."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        connection.connect(("127.0.0.1", client.base_url.port))
        yield connection


def wait_for_dropped(client: httpx.Client, number: int) -> None:
    for _ in range(6000):
        if metric(client, "worldcache_dropped_frames_total", model="toy") >= number:
            return
        time.sleep(0.01)
    raise AssertionError("no frames were dropped")


def test_a_client_that_does_not_read_loses_frames_and_nothing_else() -> None:
    with process_serving() as (client, process), small_socket(client) as connection:
        path = opened(client, num_inference_steps=1)
        query = "mode=free&details=true"
        with driving(client, path, query, sock=connection, max_queue=4, close_timeout=1) as driver:
            driver.act(0)
            wait_for_dropped(client, 100)
            before = resident_memory(process.pid)
            for number in range(1, 40):
                driver.say("ping", id=number)
                driver.act(number, number % 4)
            wait_for_dropped(client, 800)
            after = resident_memory(process.pid)
            driver.say("pause")
            heard = driver.hear_until("paused")
            driver.say("resume")
            heard += [driver.hear() for _ in range(100)]
    assert before is not None and after is not None and after - before < 32
    assert [message["id"] for message in heard if message["type"] == "pong"] == list(range(1, 40))
    pictures = [message for message in heard if message["type"] == "frame"]
    frames, depth = pictures[::2], pictures[1::2]
    dropped = sum(message["dropped"] for message in frames)
    assert dropped >= 800
    assert frames[-1]["index"] + 1 == len(frames) + dropped
    for one, other in pairwise(frames):
        assert other["index"] == one["index"] + 1 + other["dropped"]
        assert other["seq"] >= one["seq"]
    for one, other in zip(frames, depth, strict=False):  # the last pair may not be whole yet
        assert (one["modality"], other["modality"]) == ("rgb", "depth")
        assert (other["index"], other["dropped"]) == (one["index"], 0)
    steps = {message["step_id"] for message in heard if message["type"] == "step"}
    assert {message["index"] // 4 for message in frames} == steps


def test_a_server_that_is_told_to_stop_closes_its_sockets_and_ends() -> None:
    with process_serving() as (client, process), small_socket(client) as connection:
        running, stuck, idle = (opened(client, num_inference_steps=1) for _ in range(3))
        with (
            driving(client, running, "mode=free") as driver,
            driving(client, stuck, "mode=free", sock=connection, max_queue=4, close_timeout=1) as deaf,
            driving(client, idle) as waiting,
        ):
            driver.act(0)
            deaf.act(0)
            driver.frames(8)
            wait_for_dropped(client, 8)
            process.send_signal(signal.SIGTERM)
            assert closing_code(driver) == 1001
            assert closing_code(waiting) == 1001
            assert process.wait(60) in (0, -signal.SIGTERM)
