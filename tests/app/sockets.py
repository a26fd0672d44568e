"""A client of a session's WebSocket, for tests."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from websockets.sync.client import ClientConnection, connect

TIMEOUT = 20.0


@dataclass
class Driver:
    """One connection. Texts are taken apart, and a frame's image is put beside what is said of it."""

    connection: ClientConnection

    def say(self, kind: str, **fields: Any) -> None:
        self.connection.send(json.dumps({"type": kind, **fields}))

    def act(self, seq: int, action: Any = 1) -> None:
        self.say("action", action=action, seq=seq)

    def hear(self, timeout: float = TIMEOUT) -> dict[str, Any]:
        """The next message; a frame has its image as ``image``."""
        message: dict[str, Any] = json.loads(self.connection.recv(timeout))
        if message["type"] == "frame":
            message["image"] = self.connection.recv(timeout)
            assert len(message["image"]) == message["bytes"]
        return message

    def hear_until(self, kind: str) -> list[dict[str, Any]]:
        """Messages up to the first one of this type, which is the last of them."""
        heard = [self.hear()]
        while heard[-1]["type"] != kind:
            heard.append(self.hear())
        return heard

    def frames(self, count: int) -> list[dict[str, Any]]:
        """The next messages, all of which must be frames."""
        heard = [self.hear() for _ in range(count)]
        others = [message for message in heard if message["type"] != "frame"]
        assert not others, others
        return heard

    def error(self) -> tuple[str, str | None, int | None]:
        """Code, field and number of the error that must come next."""
        message = self.hear()
        assert message["type"] == "error", message
        return message["error"]["code"], message["error"]["param"], message["seq"]


@contextmanager
def driving(
    client: httpx.Client,
    path: str,
    query: str = "modalities=rgb",
    *,
    headers: Mapping[str, str] | None = None,
    subprotocols: Sequence[str] | None = None,
    ready: bool = True,
    **options: Any,
) -> Iterator[Driver]:
    """Connect to a session; ``ready`` is read unless it is wanted."""
    url = str(client.base_url).rstrip("/").replace("http", "ws", 1) + f"{path}/ws?{query}"
    with connect(
        url,
        additional_headers=dict(headers or {}),
        subprotocols=subprotocols,  # type: ignore[arg-type]
        compression=None,
        proxy=None,
        open_timeout=TIMEOUT,
        **options,
    ) as connection:
        driver = Driver(connection)
        if ready:
            assert driver.hear()["type"] == "ready"
        yield driver
