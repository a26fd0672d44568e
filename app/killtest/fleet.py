"""Two servers and a Redis as child processes, which can be killed."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import httpx

from app.loadtest.server import HOST, STOP_SECONDS, ending_in_order, free_port
from worldcache.errors import InvalidInput, WorldCacheError

START_SECONDS = 120.0

Command: TypeAlias = Callable[[int], Sequence[str]]
"""What runs a server on a port."""


def serve_command(settings: Mapping[str, object]) -> Command:
    """``worldcache serve`` with these settings, by name."""
    variables = [f"WORLDCACHE_{name.upper()}={value}" for name, value in settings.items()]
    serve = [sys.executable, "-m", "app.cli", "serve", "--host", HOST]
    return lambda port: ["env", *variables, *serve, "--port", str(port)]


class Replica:
    """A server process. It comes back on the same port.

    Args:
        command: runs it.
        log: file that its messages go to.
    """

    def __init__(self, command: Command, log: Path) -> None:
        self._port, self._log = free_port(), log
        self._command = command(self._port)
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"http://{HOST}:{self._port}"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the process; it is not ready yet."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=subprocess.STDOUT)

    def kill(self) -> None:
        """End it at once, as a crash would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        """End it in order; its exit code."""
        assert self._process is not None
        self._process.terminate()
        try:
            return self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._process.wait()

    def is_ready(self) -> bool:
        """Whether it takes work."""
        try:
            return httpx.get(f"{self.url}/readyz", timeout=10, trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    def wait_until_ready(self) -> None:
        """Return when it takes work.

        Raises:
            WorldCacheError: it does not; the message has the end of its log.
        """
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.running:
            if self.is_ready():
                return
            time.sleep(0.1)
        end = self._log.read_text(errors="replace")[-2000:]
        raise WorldCacheError(f"the server did not become ready; its log ends with:\n{end}")


@contextmanager
def redis_running() -> Iterator[str]:
    """A Redis of one's own that writes to disk; its address.

    Raises:
        InvalidInput: it is not installed.
    """
    program = shutil.which("redis-server")
    if program is None:
        raise InvalidInput("redis-server is not installed; install it or give --redis-url", param="redis_url")
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        options = ["--port", str(port), "--bind", HOST, "--dir", folder, "--appendonly", "yes", "--save", ""]
        process = subprocess.Popen([program, *options], stdout=subprocess.DEVNULL)
        try:
            _wait_until_listening(port, process)
            yield f"redis://{HOST}:{port}/0"
        finally:
            process.terminate()
            process.wait()


def _wait_until_listening(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex((HOST, port)) == 0:
                return
        time.sleep(0.05)
    raise WorldCacheError("the Redis server does not start")


@contextmanager
def fleet_running(command: Command, count: int = 2) -> Iterator[list[Replica]]:
    """So many servers, ready."""
    with tempfile.TemporaryDirectory() as folder, ending_in_order():
        replicas = [Replica(command, Path(folder) / f"{number}.log") for number in range(count)]
        try:
            for replica in replicas:
                replica.start()
            for replica in replicas:
                replica.wait_until_ready()
            yield replicas
        finally:
            for replica in replicas:
                if replica.running:
                    replica.kill()
