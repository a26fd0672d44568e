"""What routes ask for, by type."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection

from app.auth import ANYONE, Caller
from app.dispatcher import InProcessDispatcher
from app.errors import ApiError, NotFound
from app.keys import ApiKey
from app.metrics import Metrics
from app.models import ModelHost
from app.redis.backend import RedisBackend
from app.rollouts import RolloutService
from app.session_store import Session
from app.sessions import SessionService
from app.settings import Settings
from app.socket_registry import SocketRegistry
from app.store import RolloutRecord, Store
from app.tracing import Tracing


@dataclass(frozen=True)
class Services:
    """The parts of one app; made by the factory, kept in ``app.state``."""

    settings: Settings
    metrics: Metrics
    dispatcher: InProcessDispatcher
    models: ModelHost
    store: Store
    rollouts: RolloutService
    sessions: SessionService
    sockets: SocketRegistry
    redis: RedisBackend | None = None
    tracing: Tracing = field(default_factory=Tracing)


def get_services(connection: HTTPConnection) -> Services:
    services: Services = connection.app.state.services
    return services


AppServices = Annotated[Services, Depends(get_services)]


def get_key(connection: HTTPConnection) -> ApiKey:
    """The key that was presented, as the authentication found out."""
    key: ApiKey = connection.state.key
    return key


PresentedKey = Annotated[ApiKey, Depends(get_key)]


def get_owner(key: PresentedKey) -> str:
    """Who is asking: a name, which stays when the key is replaced."""
    return key.name


Owner = Annotated[str, Depends(get_owner)]


def get_caller(connection: HTTPConnection, key: PresentedKey) -> Caller:
    address = connection.client.host if connection.client else ""
    client = address if key.name == ANYONE else key.name
    return Caller(key.name, client, connection.state.arrived, key.models)


FromCaller = Annotated[Caller, Depends(get_caller)]


def check_operator(key: PresentedKey) -> None:
    """Refuse whoever may not load and unload models.

    Raises:
        ApiError: 403.
    """
    if not key.operator:
        raise ApiError(403, "not_an_operator", "this key may not load or unload models; ask an operator")


async def get_rollout(rollout_id: str, services: AppServices, owner: Owner) -> RolloutRecord:
    """The rollout of the path, if it exists and belongs to whoever asks."""
    record = await services.store.get(rollout_id)
    if record is None or record.owner != owner:
        raise NotFound(f"there is no rollout {rollout_id!r}; it may have expired", code="unknown_rollout")
    return record


OwnRollout = Annotated[RolloutRecord, Depends(get_rollout)]


async def get_session(session_id: str, services: AppServices, owner: Owner) -> Session:
    """The session of the path, if it is open and belongs to whoever asks."""
    return await services.sessions.find(session_id, owner)


OwnSession = Annotated[Session, Depends(get_session)]
