"""``WS /v1/sessions/{id}/ws``: a session driven over one connection."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, WebSocket

from app.auth import SUBPROTOCOL
from app.dependencies import AppServices, FromCaller, OwnSession
from app.errors import Unavailable
from app.outbox import Outbox
from app.session_socket import SessionSocket
from app.session_store import Session
from app.session_views import modalities_of
from app.socket_messages import SocketQuery
from app.socket_views import SocketOptions
from worldcache.core import ModelInfo
from worldcache.errors import InvalidInput

router = APIRouter(prefix="/v1/sessions")


@router.websocket("/{session_id}/ws")
async def drive_session(
    websocket: WebSocket,
    query: Annotated[SocketQuery, Query()],
    session: OwnSession,
    services: AppServices,
    caller: FromCaller,
) -> None:
    """Serve one client; another one that connects to the same session takes over."""
    settings, registry = services.settings, services.sockets
    info = services.sessions.info(session)
    options = _options(query, session, info)
    if registry.draining:
        raise Unavailable("draining", "the server is shutting down", retry_after=5)
    await websocket.accept(SUBPROTOCOL if SUBPROTOCOL in websocket.scope["subprotocols"] else None)
    dropped = services.metrics.dropped_frames.labels(session.model)
    socket = SessionSocket(
        websocket,
        session,
        services.sessions,
        options,
        caller,
        Outbox(settings.session_outbox_frames, dropped.inc),
        idle_seconds=settings.session_free_run_seconds,
        request_id=websocket.state.request_id,
    )
    await registry.serve(session.id, socket)


def _options(query: SocketQuery, session: Session, info: ModelInfo) -> SocketOptions:
    """What the client chose, completed by what the session answers with.

    Raises:
        InvalidInput: the model has no such modality.
    """
    pictures = [modality.name for modality in info.pictures]
    names = tuple(name for name in modalities_of(session, info) if name in pictures)
    if query.modalities is not None:
        names = tuple(name.strip() for name in query.modalities.split(","))
        for name in names:
            if not info.modality(name, param="modalities").picture:
                message = f"modalities: {name!r} is no picture, and is not sent over a WebSocket"
                raise InvalidInput(message, param="modalities", code="not_a_picture")
        if len(set(names)) < len(names):
            raise InvalidInput("modalities: name each of them once", param="modalities")
    return SocketOptions(query.mode, names, query.format or session.output.format, query.details)
