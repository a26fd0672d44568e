"""A real server on loopback, in this process, around a toy model."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import httpx
import pytest

from app.catalogue import ModelSource
from app.main import create_app
from app.serving import make_server
from app.settings import Settings
from tests.toy import ToyWorldModel
from worldcache.models.base import WorldModel

Serve = Callable[..., contextlib.AbstractContextManager[httpx.Client]]


@contextlib.contextmanager
def serving(
    model: ToyWorldModel | None = None,
    *,
    models_by_name: Mapping[str, WorldModel | ModelSource] | None = None,
    wait_until_ready: bool = True,
    timeout: float = 30,
    **settings: Any,
) -> Iterator[httpx.Client]:
    """Run the app until the block ends; the client waits for ``/readyz`` first.

    It serves ``model`` as ``toy``, or else ``models_by_name``, or those that the settings name.
    """
    if models_by_name is None and "models" not in settings:
        models_by_name = {"toy": model or ToyWorldModel()}
    app = create_app(Settings(**settings), models_by_name=models_by_name)
    server = make_server(app, host="127.0.0.1", port=0, log_level="warning")
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=timeout) as client:
        try:
            while wait_until_ready and client.get("/readyz").status_code != 200:
                time.sleep(0.01)
            yield client
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive()


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    """A server with the default settings, shared by a module."""
    with serving() as running:
        yield running


def rollout_body(**changes: Any) -> dict[str, Any]:
    """A small valid request."""
    return {
        "model": "toy",
        "observation": {"start": "centre"},
        "actions": ["MOVE_LEFT"] * 6,
        "num_inference_steps": 10,
        "seed": 3,
        **changes,
    }
