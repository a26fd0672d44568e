"""One replica: the whole app, a second door for the other replicas, and what tells them of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.middleware import Middleware

from app.dependencies import Services
from app.main import create_app
from app.serving import make_server
from app.settings import Settings, check_binding
from deploy.ray.forward import Forwarder, PeerMiddleware
from deploy.ray.front import FrontMiddleware
from deploy.ray.members import Members, Status
from worldcache.errors import InvalidInput

LOOK_SECONDS = 0.05


def create_replica(settings: Settings, host: str) -> FastAPI:
    """The app of one replica; it is started by its lifespan, as any app is.

    Args:
        settings: as for a server on its own.
        host: address of this machine at which the other replicas reach it.

    Raises:
        InvalidInput: there is no Redis, or the address can be reached by others and there are no keys.
    """
    if not settings.redis_url:
        message = "setting redis_url: replicas share their rollouts in Redis; set WORLDCACHE_REDIS_URL"
        raise InvalidInput(message, param="redis_url")
    check_binding(settings.model_copy(update={"host": host}))
    app = create_app(settings)
    services: Services = app.state.services
    assert services.redis is not None
    members = Members(
        services.redis.link, services.redis.replica, lambda: _status(services), settings.lease_seconds
    )
    forwarder = Forwarder(lambda: members.token)
    app.add_middleware(PeerMiddleware, token=lambda: members.token)  # added last, so it comes first
    app.user_middleware.append(
        Middleware(FrontMiddleware, services=services, members=members, forwarder=forwarder)
    )
    inner = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with inner(app), _door(app, host) as url:
            while not services.models.ready:
                await asyncio.sleep(LOOK_SECONDS)
            await members.start(url)
            try:
                yield
            finally:
                services.rollouts.draining = True
                await members.close()
                await forwarder.close()

    app.router.lifespan_context = lifespan
    return app


def _status(services: Services) -> Status:
    """What the others are told."""
    settings, dispatcher = services.settings, services.dispatcher
    warm = tuple(hosted.id for hosted in services.models.all() if hosted.status == "warm")
    places = settings.max_active * len(settings.devices)
    return Status(warm, 0 if services.rollouts.draining else places - dispatcher.live)


@asynccontextmanager
async def _door(app: FastAPI, host: str) -> AsyncIterator[str]:
    """Serve the app to the other replicas at a free port; ends as a server that is told to stop does."""
    server = make_server(
        app, host=host, port=0, lifespan="off", log_config=None, access_log=False, timeout_graceful_shutdown=5
    )
    serving = asyncio.create_task(server.serve())
    while not server.started:
        if serving.done():
            serving.result()
            raise OSError(f"nothing can be served at {host}")
        await asyncio.sleep(LOOK_SECONDS)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://{host}:{port}"
    finally:
        server.should_exit = True
        await serving
