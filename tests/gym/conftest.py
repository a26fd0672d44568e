"""A running server, and environments of it that are closed afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.app.conftest import serving
from worldcache.client.gym import WorldEnv, WorldVectorEnv

Make = Callable[..., Any]


@pytest.fixture(scope="module")
def server() -> Iterator[httpx.Client]:
    """A server of a module's own, through plain httpx."""
    with serving() as running:
        yield running


@pytest.fixture
def make(server: httpx.Client) -> Iterator[Make]:
    """Makes environments of it: one, or several with ``num_envs``."""
    made: list[Any] = []

    def make_one(url: str | None = None, **options: Any) -> Any:
        kind = WorldVectorEnv if "num_envs" in options else WorldEnv
        defaults = {"model": "toy", "num_inference_steps": 5, "base_url": url or str(server.base_url)}
        env = kind(**{**defaults, **options})
        made.append(env)
        return env

    yield make_one
    for env in made:
        env.close()


def sessions(server: httpx.Client) -> list[dict[str, Any]]:
    """That are open."""
    return list(server.get("/v1/sessions").json()["data"])
