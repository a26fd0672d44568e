"""The service from Python, over HTTP.

    from worldcache.client import Client

    with Client("http://127.0.0.1:8000") as client:
        rollout = client.rollouts.create(model="doom", start="centre", actions=["MOVE_LEFT"] * 32)
        rollout.frames()["rgb"]       # uint8 [32, 48, 64, 3]
        rollout.save("dream.mp4")

        with client.sessions.create(model="doom", start="centre") as session:
            session.step(["MOVE_LEFT"]).frames["rgb"]

:class:`AsyncClient` is the same with ``await``. What both do is written once, in modules that do neither
input nor output: :mod:`exchange <worldcache.client.exchange>` says how.
"""

from worldcache.client.async_client import AsyncClient
from worldcache.client.async_live import AsyncLiveConnection
from worldcache.client.async_rollouts import AsyncEventStream, AsyncRollout
from worldcache.client.async_sessions import AsyncSession
from worldcache.client.errors import (
    ApiError,
    BadRequest,
    ClientError,
    Conflict,
    ConnectionFailed,
    DeadlineError,
    DeadlineExceeded,
    DeadlineUnreachable,
    InvalidInput,
    NotFound,
    PillowMissing,
    RateLimited,
    RolloutCancelled,
    RolloutError,
    RolloutFailed,
    ServerBusy,
    ServerError,
    StepsFailed,
    TakenOver,
    Unauthorized,
    UnexpectedAnswer,
    WaitedTooLong,
    WebSocketsMissing,
)
from worldcache.client.events import Chunk, Done, Event, Frame, Picture, Status
from worldcache.client.live_types import (
    CacheChanged,
    LiveFrame,
    LiveMessage,
    LiveStep,
    Paused,
    Pong,
    Ready,
    Refusal,
    Resumed,
    Rewound,
    TokenMap,
)
from worldcache.client.retries import Retries
from worldcache.client.session_types import Branch, Plan, SessionData, Step, StepStats
from worldcache.client.sync_client import Client
from worldcache.client.sync_live import LiveConnection
from worldcache.client.sync_rollouts import EventStream, Rollout
from worldcache.client.sync_sessions import Session
from worldcache.client.types import (
    ActionSpace,
    ChunkStats,
    ModelDescription,
    PolicyDescription,
    Problem,
    RolloutData,
    RolloutStats,
)

__all__ = [
    "ActionSpace",
    "ApiError",
    "AsyncClient",
    "AsyncEventStream",
    "AsyncLiveConnection",
    "AsyncRollout",
    "AsyncSession",
    "BadRequest",
    "Branch",
    "CacheChanged",
    "Chunk",
    "ChunkStats",
    "Client",
    "ClientError",
    "Conflict",
    "ConnectionFailed",
    "DeadlineError",
    "DeadlineExceeded",
    "DeadlineUnreachable",
    "Done",
    "Event",
    "EventStream",
    "Frame",
    "InvalidInput",
    "LiveConnection",
    "LiveFrame",
    "LiveMessage",
    "LiveStep",
    "ModelDescription",
    "NotFound",
    "Paused",
    "Picture",
    "PillowMissing",
    "Plan",
    "PolicyDescription",
    "Pong",
    "Problem",
    "RateLimited",
    "Ready",
    "Refusal",
    "Resumed",
    "Retries",
    "Rewound",
    "Rollout",
    "RolloutCancelled",
    "RolloutData",
    "RolloutError",
    "RolloutFailed",
    "RolloutStats",
    "ServerBusy",
    "ServerError",
    "Session",
    "SessionData",
    "Status",
    "Step",
    "StepStats",
    "StepsFailed",
    "TakenOver",
    "TokenMap",
    "Unauthorized",
    "UnexpectedAnswer",
    "WaitedTooLong",
    "WebSocketsMissing",
]
