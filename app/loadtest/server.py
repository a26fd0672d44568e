"""A server of one's own as a child process, and the memory of any server on this machine."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import httpx
from pydantic import ValidationError

from app.settings import Settings
from worldcache.errors import InvalidInput, WorldCacheError

START_SECONDS = 300.0
STOP_SECONDS = 60.0
HOST = "127.0.0.1"


@dataclass(frozen=True)
class ServerProcess:
    """A server that answers."""

    url: str
    pid: int


def read_settings(chosen: Mapping[str, Any]) -> Settings:
    """What a server is started with, or is believed to have been; the environment decides about the rest.

    Raises:
        InvalidInput: a value cannot be; ``param`` names the setting.
    """
    try:
        return Settings(**chosen)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in problem["loc"])
        raise InvalidInput(f"setting {name}: {problem['msg']}", param=name) from None


def as_variables(settings: Settings, names: Sequence[str]) -> dict[str, str]:
    """These settings, models, devices and the log's level, as a server's environment spells them."""
    chosen = {name: str(getattr(settings, name)) for name in (*names, "log_level")}
    return chosen | {"models": ",".join(settings.models), "devices": ",".join(settings.devices)}


@contextmanager
def start_server(settings: Mapping[str, str]) -> Iterator[ServerProcess]:
    """Run ``worldcache serve`` on a free port of this machine until the block ends.

    Args:
        settings: by name, for the child's environment alone; the others are as here.

    Raises:
        WorldCacheError: it does not become ready; the message has the end of its log.
    """
    port = free_port()
    variables = [f"WORLDCACHE_{name.upper()}={value}" for name, value in settings.items()]
    serve = [sys.executable, "-m", "app.cli", "serve", "--host", HOST, "--port", str(port)]
    with tempfile.TemporaryFile() as log, ending_in_order():
        process = subprocess.Popen(["env", *variables, *serve], stdout=log, stderr=subprocess.STDOUT)
        try:
            url = f"http://{HOST}:{port}"
            _wait_until_ready(process, url, log)
            yield ServerProcess(url, process.pid)
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def ending_in_order() -> Iterator[None]:
    """Let SIGTERM end this process as an exit does, so that it takes its server with it."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may decide about signals
        return

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: IO[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    with httpx.Client(base_url=url, timeout=10, trust_env=False) as http:
        while time.monotonic() < deadline and process.poll() is None:
            try:
                if http.get("/readyz").status_code == 200:
                    return
            except httpx.TransportError:
                pass  # it does not listen yet
            time.sleep(0.1)
    log.seek(0)
    end = log.read().decode(errors="replace")[-2000:]
    raise WorldCacheError(f"the server did not become ready; its log ends with:\n{end}")


def resident_memory(pid: int) -> float | None:
    """Resident memory of a process in MiB; ``None`` where the system does not tell."""
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        return None
    for line in status.read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return None


@asynccontextmanager
async def watching_memory(pid: int | None, every: float) -> AsyncIterator[list[tuple[float, float]]]:
    """Sample a process's memory until the block ends: pairs of seconds and MiB, in a list that grows."""
    samples: list[tuple[float, float]] = []
    began = time.monotonic()

    async def watch(process: int) -> None:
        while (memory := resident_memory(process)) is not None:
            samples.append((time.monotonic() - began, memory))
            await asyncio.sleep(every)

    task = asyncio.create_task(watch(pid)) if pid is not None else None
    try:
        yield samples
    finally:
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
