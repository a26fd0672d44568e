"""The error tree of the client.

ClientError
├── InvalidInput            the client cannot make a request of this (also a ValueError)
├── PillowMissing           pictures need pillow (also an ImportError)
├── WebSocketsMissing       live connections need websockets (also an ImportError)
├── ConnectionFailed        the server was not reached, or the connection was lost
├── UnexpectedAnswer        the answer is not what this API gives
├── TakenOver               another connection drives the session
├── StepsFailed             some of the steps that were asked for at once were not taken
├── WaitedTooLong           the time that the caller gave to wait() is over (also a TimeoutError)
├── ApiError                the server refused, with its status, code and message
│   ├── BadRequest          400, 413, 415, 422; ``param`` names the field
│   ├── Unauthorized        401, 403
│   ├── NotFound            404, 410
│   ├── Conflict            409
│   ├── RateLimited         429, more than this client may have at once
│   ├── ServerBusy          503, the server is full, loading or stopping
│   ├── DeadlineUnreachable 504, also a DeadlineError
│   └── ServerError         any other from 500 on
├── RolloutError            a rollout was accepted and ended without success
│   ├── RolloutFailed
│   └── RolloutCancelled
│       └── DeadlineExceeded    also a DeadlineError
└── DeadlineError           a deadline that was refused or missed
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from worldcache.client.types import Problem

if TYPE_CHECKING:
    from worldcache.client.session_types import Step
    from worldcache.client.types import RolloutData


class ClientError(Exception):
    """Base of every error that the client raises on purpose."""


class InvalidInput(ClientError, ValueError):
    """A value from which no request can be made."""


class PillowMissing(ClientError, ImportError):
    """Pictures are to be made or read, and pillow is not installed."""


class WebSocketsMissing(ClientError, ImportError):
    """A live connection is to be opened, and websockets is not installed."""


class ConnectionFailed(ClientError):
    """The server was not reached, or the connection was lost; repeating did not help or was not safe."""


class UnexpectedAnswer(ClientError):
    """The answer is not what this API gives: perhaps another server, or a proxy's page."""


class WaitedTooLong(ClientError, TimeoutError):
    """The time that the caller gave is over; what was waited for goes on."""


class TakenOver(ClientError):
    """Another live connection to the same session took over from this one."""


class StepsFailed(ClientError):
    """Some of the steps that were asked for at once were not taken; the others are part of their worlds.

    Attributes:
        steps: what came of each, in order: the step, or why it was not taken.
    """

    def __init__(self, steps: Sequence[Step | Problem]) -> None:
        self.steps = tuple(steps)
        failed = [(index, step) for index, step in enumerate(steps) if isinstance(step, Problem)]
        index, problem = failed[0]
        super().__init__(
            f"{len(failed)} of {len(steps)} steps were not taken; "
            f"number {index}: {problem.message} ({problem.code})"
        )


class DeadlineError(ClientError):
    """A deadline cannot be met or was not met."""


class ApiError(ClientError):
    """A refusal of the server.

    Attributes:
        status: of the response.
        code: machine-readable name of the problem.
        message: what is wrong and what to do.
        param: dotted path of the field at fault.
        request_id: to quote to the server's operator.
        retry_after: seconds after which the server expects to have room.
        location: path of the rollout that the refusal is about.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        param: str | None = None,
        request_id: str | None = None,
        *,
        retry_after: float | None = None,
        location: str | None = None,
    ) -> None:
        super().__init__(f"{message} ({status} {code})")
        self.status, self.code, self.message = status, code, message
        self.param, self.request_id = param, request_id
        self.retry_after, self.location = retry_after, location


class BadRequest(ApiError):
    """400, 413, 415, 422: the request cannot be served as it is."""


class Unauthorized(ApiError):
    """401, 403: the API key is missing or opens nothing here."""


class NotFound(ApiError):
    """404, 410: there is no such thing, no longer, or it is another key's."""


class Conflict(ApiError):
    """409: not in this state."""


class RateLimited(ApiError):
    """429: this client has too much under way."""


class ServerBusy(ApiError):
    """503: not now."""


class DeadlineUnreachable(ApiError, DeadlineError):
    """504: refused, because it could not end in time; the message says what would be possible."""


class ServerError(ApiError):
    """5xx: the server failed."""


class RolloutError(ClientError):
    """A rollout was accepted and ended without success.

    Attributes:
        code: machine-readable name of the problem.
        message: what went wrong.
        rollout: as it ended; ``None`` if the server did not say which one it was.
    """

    def __init__(self, code: str, message: str, rollout: RolloutData | None = None) -> None:
        super().__init__(f"{message} ({code})")
        self.code, self.message, self.rollout = code, message, rollout


class RolloutFailed(RolloutError):
    """It failed while it ran."""


class RolloutCancelled(RolloutError):
    """It was cancelled before it finished."""


class DeadlineExceeded(RolloutCancelled, DeadlineError):
    """It was cancelled because its deadline had passed."""
