"""Both clients under the same tests: the asynchronous one is driven from ordinary code."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from tests.app.conftest import serving
from worldcache.client import AsyncClient, Client

URL = "http://server"
FIELDS: dict[str, Any] = {
    "model": "toy",
    "start": "centre",
    "actions": ["MOVE_LEFT"] * 6,
    "num_inference_steps": 10,
    "seed": 3,
}
LONG: dict[str, Any] = {**FIELDS, "actions": ["NOOP"] * 200, "cache": "none"}


class Driven:
    """Something of the asynchronous client, used as if it were of the other one."""

    def __init__(self, target: Any, run: Callable[[Any], Any]) -> None:
        self.target, self._run = target, run

    def __getattr__(self, name: str) -> Any:
        return self._wrap(getattr(self.target, name))

    def __setattr__(self, name: str, value: Any) -> None:
        assert name in ("target", "_run")
        self.__dict__[name] = value

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._wrap(self.target(*arguments, **options))

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            return self._wrap(self._run(anext(self.target)))
        except StopAsyncIteration:
            raise StopIteration from None

    def __enter__(self) -> Any:
        return self._wrap(self._run(self.target.__aenter__()))

    def __exit__(self, *reason: Any) -> None:
        self._run(self.target.__aexit__(*reason))

    def close(self) -> None:
        self._run(self.target.aclose())

    def _wrap(self, value: Any) -> Any:
        if isinstance(value, Awaitable):
            value = self._run(value)
        mine = type(value).__module__.startswith("worldcache.client.async_")
        if mine or inspect.ismethod(value) or isinstance(value, AsyncIterator):
            return Driven(value, self._run)
        return value


@dataclass
class Hourglass:
    """A clock that only the client's own pauses move."""

    pauses: list[float] = field(default_factory=list)
    now: float = 0.0

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    async def asleep(self, seconds: float) -> None:
        self.sleep(seconds)


class Kind:
    """One of the clients."""

    def __init__(self, runner: asyncio.Runner | None) -> None:
        self._runner = runner

    @property
    def asynchronous(self) -> bool:
        return self._runner is not None

    def connect(self, url: str = URL, *, hourglass: Hourglass | None = None, **options: Any) -> Any:
        """A client; with an hourglass it neither waits nor draws lots."""
        if hourglass is not None:
            sleep = hourglass.asleep if self.asynchronous else hourglass.sleep
            options |= {"clock": hourglass.clock, "sleep": sleep, "jitter": lambda: 1.0}
        if self._runner is None:
            return Client(url, **options)
        return Driven(AsyncClient(url, **options), self._run)

    def _run(self, awaitable: Any) -> Any:
        async def wait() -> Any:
            return await awaitable

        assert self._runner is not None
        return self._runner.run(wait())


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> Iterator[Kind]:
    if request.param == "sync":
        yield Kind(None)
    else:
        with asyncio.Runner() as runner:
            yield Kind(runner)


@pytest.fixture(scope="module")
def server() -> Iterator[httpx.Client]:
    """A server of a module's own, through plain httpx."""
    with serving() as running:
        yield running


@pytest.fixture
def client(kind: Kind, server: httpx.Client) -> Iterator[Any]:
    """Each of the clients, of that server."""
    with kind.connect(str(server.base_url)) as connected:
        yield connected


def statuses(server: httpx.Client) -> list[str]:
    """Of all rollouts, newest first."""
    return [rollout["status"] for rollout in server.get("/v1/rollouts").json()["data"]]
