"""One reader's way through a rollout's events, over as many connections as it takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic
from urllib.parse import quote

import httpx

from worldcache.client.errors import ClientError, ConnectionFailed, UnexpectedAnswer
from worldcache.client.events import Event, RolloutT, read_event
from worldcache.client.exchange import Exchange, Reply, Request, connection_failed
from worldcache.client.retries import is_temporary
from worldcache.client.sse import EventParser

EVENT_STREAM = "text/event-stream"
SILENCE_SECONDS = 90.0
"""A stream that is silent for so long is lost: the server sends comments meanwhile. Longer than the server
waits for a model by default, so that the first answer is waited for."""


class EventReader(Generic[RolloutT]):
    """Says what to request next and takes in what comes. It does neither input nor output.

    Args:
        exchange: of the client.
        wrap: makes a rollout of its data.
        first: asks for the rollout and its stream; ``None`` if there is a rollout already.
        rollout_id: of that.
        after: id of the last event that is known already.
    """

    def __init__(
        self,
        exchange: Exchange,
        wrap: Callable[[Any], RolloutT],
        *,
        first: Request | None = None,
        rollout_id: str | None = None,
        after: int | None = None,
    ) -> None:
        self.rollout_id, self.last_id, self.ended = rollout_id, after, False
        self._first, self._wrap = first, wrap
        self._backoff = exchange.backoff(first.within if first else None)
        self._parser = EventParser()

    def request(self) -> Request:
        """What to send now."""
        self._parser = EventParser()
        if self.rollout_id is None:
            assert self._first is not None
            return self._first
        headers = {"Accept": EVENT_STREAM}
        if self.last_id is not None:
            headers["Last-Event-ID"] = str(self.last_id)
        path = f"/v1/rollouts/{quote(self.rollout_id, safe='')}/events"
        return Request("GET", path, headers=headers, repeatable=True, silence=SILENCE_SECONDS)

    def connected(self, headers: Mapping[str, str]) -> None:
        """The stream begins.

        Raises:
            UnexpectedAnswer: it is none.
        """
        kind = headers.get("content-type", "")
        if not kind.startswith(EVENT_STREAM):
            raise UnexpectedAnswer(f"this is no event stream but {kind or 'of no type'}")
        self.rollout_id = headers.get("x-rollout-id") or self.rollout_id

    def feed(self, data: bytes) -> Iterator[Event[RolloutT]]:
        """The events in what was received.

        Raises:
            RolloutFailed, RolloutCancelled, NotFound: the rollout has ended so.
            UnexpectedAnswer: this is no stream of a rollout.
        """
        for sent in self._parser.feed(data):
            event = read_event(sent, self._wrap)
            self.ended = sent.name in ("done", "error")
            if isinstance(event, ClientError):
                raise event
            if event is not None:
                self.last_id = event.id
                self._backoff.reset()
                yield event

    def pause(self, request: Request, trouble: Reply | httpx.RequestError | None) -> float:
        """Seconds until the next request, after one that did not reach the end.

        Args:
            request: that was sent.
            trouble: a refusal, a lost connection, or ``None`` if the stream stopped short.

        Raises:
            ApiError: refused for good.
            ConnectionFailed: it makes no sense to go on trying.
        """
        failure: ClientError
        again, retry_after = True, None
        if isinstance(trouble, Reply):
            failure = refusal = trouble.error()
            again, retry_after = is_temporary(refusal), refusal.retry_after
        elif trouble is None:
            failure = ConnectionFailed(f"{request.method} {request.path}: the stream stopped before its end")
        else:
            failure = connection_failed(request, trouble)
        delay = self._backoff.next_delay(retry_after) if again else None
        if delay is None:
            raise failure
        return delay
