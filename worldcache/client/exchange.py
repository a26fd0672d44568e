"""Requests, replies, and how they follow each other, without any input or output.

An :data:`Operation` is a generator: it yields what is to be done, a :class:`Request` or a :class:`Pause`, and
is sent the :class:`Reply` or thrown the ``httpx.RequestError`` that came of it. Both clients run the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from worldcache import __version__
from worldcache.client import errors
from worldcache.client.errors import ApiError, ClientError, ConnectionFailed, InvalidInput, UnexpectedAnswer
from worldcache.client.retries import Backoff, Retries, is_temporary, read_retry_after

ResultT = TypeVar("ResultT")
ModelT = TypeVar("ModelT", bound=BaseModel)

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_TIMEOUT = 600.0
CONNECT_SECONDS = 10.0
SHOWN = 200
"""Characters of an answer that an error message quotes."""


@dataclass(frozen=True)
class Request:
    """A request, the same for every attempt.

    Attributes:
        repeatable: a second one does nothing that the first has not done.
        repeatable_if_refused: true of one that was refused for the moment, but not of one that got lost.
        unfinished: tells of a reply that an earlier attempt, whose own reply was lost, is still being served.
        begun: there has been such an attempt before.
        ends_with_connection: the server gives up what is asked for when nobody waits for the answer any more,
            so silence is no reason to repeat it.
        within: seconds from the first attempt within which it may be repeated.
        silence: seconds without a byte after which the connection counts as lost, if fewer than the client's.
    """

    method: str
    path: str
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    repeatable: bool = False
    repeatable_if_refused: bool = False
    unfinished: Callable[[Reply], bool] | None = None
    begun: bool = False
    ends_with_connection: bool = False
    within: float | None = None
    silence: float | None = None

    def again_after(self, refusal: ApiError) -> bool:
        """It may be repeated after that."""
        return (self.repeatable or self.repeatable_if_refused) and is_temporary(refusal)


@dataclass(frozen=True)
class Pause:
    """Wait for so many seconds."""

    seconds: float


@dataclass(frozen=True)
class Reply:
    """A response that was read to its end."""

    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    def json(self) -> Any:
        """The body as data.

        Raises:
            UnexpectedAnswer: it is no JSON.
        """
        try:
            return json.loads(self.content)
        except ValueError:
            raise UnexpectedAnswer(f"this is no JSON: {self._shown()}") from None

    def error(self) -> ApiError:
        """The refusal that this is."""
        try:
            envelope = json.loads(self.content)["error"]
            code, message = str(envelope["code"]), str(envelope["message"])
        except (ValueError, KeyError, TypeError):  # a proxy's answer: its text is all there is
            envelope, code, message = {}, f"http_{self.status}", self._shown() or "no reason given"
        return _error_class(self.status, code)(
            self.status,
            code,
            message,
            envelope.get("param"),
            envelope.get("request_id") or self.headers.get("x-request-id"),
            retry_after=read_retry_after(self.headers.get("retry-after")),
            location=self.headers.get("location"),
        )

    def _shown(self) -> str:
        return self.content[:SHOWN].decode("utf-8", "replace")


Operation: TypeAlias = Generator[Request | Pause, Reply | None, ResultT]


@dataclass(frozen=True)
class Exchange:
    """What all requests of a client have in common.

    Attributes:
        base_url: of the server; it may have a path.
        api_key: sent as a bearer token.
        timeout: seconds without a byte after which a connection counts as lost.
        retries: how patient to be with a server that is busy or gone.
        clock: seconds, monotonic.
        jitter: draws from 0 to 1.
    """

    base_url: str
    api_key: str | None = field(repr=False)
    timeout: float
    retries: Retries
    clock: Callable[[], float]
    jitter: Callable[[], float]

    def __post_init__(self) -> None:
        try:
            url = httpx.URL(self.base_url)
        except httpx.InvalidURL as error:
            raise InvalidInput(f"base_url {self.base_url!r}: {error}") from error
        if url.scheme not in ("http", "https") or not url.host:
            raise InvalidInput(f"base_url {self.base_url!r} must begin with http:// or https:// and a host")
        check_header("api_key", self.api_key)

    def headers(self) -> dict[str, str]:
        """Of every request."""
        headers = {"User-Agent": f"worldcache-client/{__version__}"}
        return headers if self.api_key is None else {**headers, "Authorization": f"Bearer {self.api_key}"}

    def arguments(self, request: Request) -> dict[str, Any]:
        """What httpx needs to build a request. The URL is absolute: nothing depends on the httpx client."""
        silence = self.timeout if request.silence is None else min(request.silence, self.timeout)
        return {
            "method": request.method,
            "url": self.base_url.rstrip("/") + request.path,
            "params": dict(request.params) or None,
            "headers": {**self.headers(), **request.headers},
            "content": request.content,
            "timeout": httpx.Timeout(silence, connect=min(silence, CONNECT_SECONDS)),
        }

    def backoff(self, within: float | None = None) -> Backoff:
        """The delays of a new request."""
        return Backoff(self.retries, self.clock, self.jitter, within)

    def ask(self, request: Request) -> Operation[Reply]:
        """Send a request, again if that is safe and may help, and return its successful reply.

        Raises:
            ApiError: the server refused it.
            ConnectionFailed: there was no reply.
        """
        backoff, lost = self.backoff(request.within), request.begun
        while True:
            result: Reply | ClientError
            try:
                reply = yield request
            except httpx.RequestError as error:
                result, retry_after, lost = connection_failed(request, error), None, True
                silent = request.ends_with_connection and isinstance(error, httpx.ReadTimeout)
                again = request.repeatable and not silent
            else:
                assert reply is not None
                unfinished = lost and request.unfinished is not None and request.unfinished(reply)
                refusal = None if reply.ok else reply.error()
                result, retry_after = refusal or reply, refusal.retry_after if refusal else None
                again = unfinished or (refusal is not None and request.again_after(refusal))
            delay = backoff.next_delay(retry_after) if again else None
            if delay is not None:
                yield Pause(delay)
            elif isinstance(result, Reply):
                return result
            else:
                raise result


def check_header(name: str, value: str | None) -> None:
    """Refuse a text that no header can carry, without showing it.

    Raises:
        InvalidInput: ``value`` is not ``None`` and not printable ASCII.
    """
    if value is not None and not (value and value.isascii() and value.isprintable()):
        raise InvalidInput(f"{name} must be printable ASCII")


def connection_failed(request: Request, error: httpx.RequestError) -> ConnectionFailed:
    """What happened to a request that got no reply."""
    reason = str(error) or type(error).__name__
    if isinstance(error, httpx.ReadTimeout):
        reason = "the server was silent for too long; raise the client's timeout"
        if request.ends_with_connection:
            reason += " or ask with wait=False"
    failure = ConnectionFailed(f"{request.method} {request.path}: {reason}")
    failure.__cause__ = error
    return failure


def read_answer(kind: type[ModelT], data: Any) -> ModelT:
    """Data of an answer as its type.

    Raises:
        UnexpectedAnswer: it is something else.
    """
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in problem["loc"])
        raise UnexpectedAnswer(f"this is no {kind.__name__}: {place}: {problem['msg']}") from error


def _error_class(status: int, code: str) -> type[ApiError]:
    if status == 504 and code.startswith("deadline_"):
        return errors.DeadlineUnreachable
    by_status: dict[int, type[ApiError]] = {
        **dict.fromkeys((400, 413, 415, 422), errors.BadRequest),
        **dict.fromkeys((401, 403), errors.Unauthorized),
        **dict.fromkeys((404, 410), errors.NotFound),
        409: errors.Conflict,
        429: errors.RateLimited,
        503: errors.ServerBusy,
    }
    return by_status.get(status, errors.ServerError if status >= 500 else ApiError)
