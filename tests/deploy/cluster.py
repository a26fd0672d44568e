"""A local Ray cluster as a child process, as ``python -m deploy.ray.local`` starts it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from tests.app.redis.server import RedisServer, free_port

ROOT = Path(__file__).parents[2]
MARK = "WORLDCACHE_TEST_CLUSTER="
START_SECONDS = 180
STOP_SECONDS = 60


def eventually(check: Callable[[], Any], seconds: float = 30.0) -> Any:
    """What ``check`` returns as soon as it is true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := check():
            return found
        time.sleep(0.05)
    raise AssertionError("it did not happen in time")


class Cluster:
    """Two replicas of the toy world.

    Args:
        folder: for its log.
        redis: the replicas' state.
    """

    def __init__(self, folder: Path, redis: RedisServer) -> None:
        self._log, self._redis = folder / "cluster.log", redis
        self._mark = f"{MARK}{uuid.uuid4().hex}"
        self.url = f"http://127.0.0.1:{free_port()}"

    def start(self) -> None:
        name, _, value = self._mark.partition("=")
        environment = {
            **{key: text for key, text in os.environ.items() if not key.startswith(("RAY_", "WORLDCACHE_"))},
            name: value,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "WORLDCACHE_REDIS_URL": self._redis.url,
            "WORLDCACHE_MODELS": "toy=tests.deploy.world.SlowWorld",
            "WORLDCACHE_LEASE_SECONDS": "3",
            "WORLDCACHE_DRAIN_SECONDS": "2",
            "WORLDCACHE_SESSION_SNAPSHOT_SECONDS": "0.2",
        }
        port = self.url.rpartition(":")[2]
        command = [sys.executable, "-m", "deploy.ray.local", "--port", port, "--replicas", "2"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
            )
        try:
            eventually(self._serves, START_SECONDS)
        except BaseException:
            self.kill()
            raise

    def stop(self) -> int:
        """As a service manager would; returns the exit code."""
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(STOP_SECONDS)
        finally:
            self.kill()

    def left(self) -> list[int]:
        """Processes of the cluster that live."""
        return [int(path.name) for path in Path("/proc").glob("[0-9]*") if self._is_ours(path)]

    def kill(self) -> None:
        """Whatever still lives."""
        for pid in self.left():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._process.wait()

    def replicas(self) -> dict[str, str]:
        """The replicas' names, each with where it listens to the others."""
        client = self._redis.client()
        found: dict[str, str] = {}
        for key in client.keys("worldcache:ray:replica:*"):
            value = client.get(key)
            if value is not None:
                found[key.decode().rpartition(":")[2]] = json.loads(value)["url"]
        return found

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def _serves(self) -> bool:
        assert self._process.poll() is None, self.log()
        try:
            ready = httpx.get(f"{self.url}/readyz").status_code == 200
        except httpx.TransportError:
            return False
        return ready and len(self.replicas()) == 2

    def _is_ours(self, process: Path) -> bool:
        try:
            state = (process / "stat").read_text().rpartition(")")[2].split()[0]
            return state != "Z" and self._mark.encode() in (process / "environ").read_bytes().split(b"\0")
        except (OSError, IndexError):
            return False


def pid_of(replica: str) -> int:
    """The process of a replica: its name is of host, process and chance."""
    return int(replica.rsplit("-", 2)[1])
