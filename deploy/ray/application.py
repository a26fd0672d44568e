"""The Ray Serve application: ``serve run deploy.ray.application:build`` and ``serve.yaml``."""

from __future__ import annotations

from typing import Any

import ray
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve import Application

from app.dependencies import Services
from app.settings import Settings
from app.store import StoreDown
from deploy.ray.replica import create_replica
from deploy.ray.scaling import WORK


class Arguments(BaseModel):
    """What ``args`` of an application may hold.

    Attributes:
        settings: by name; the others come from each replica's environment.
        options: of the deployment, for example ``num_replicas`` or ``ray_actor_options``.
    """

    model_config = ConfigDict(extra="forbid")

    settings: dict[str, Any] = Field(default_factory=dict)
    options: dict[str, Any] = Field(default_factory=dict)


class Engine:
    """A replica as Serve sees it."""

    app: FastAPI

    async def check_health(self) -> None:
        """Have a replica replaced whose engine has ended.

        Raises:
            RuntimeError: it has.
        """
        if not self._services.dispatcher.alive:
            raise RuntimeError("the engine has stopped")

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """The accepted work."""
        redis = self._services.redis
        assert redis is not None
        try:
            return {WORK: float(await redis.queue.length())}
        except StoreDown:
            return {}

    @property
    def _services(self) -> Services:
        services: Services = self.app.state.services
        return services


def build(args: dict[str, Any]) -> Application:
    """The application, one deployment of equal replicas.

    Args:
        args: as :class:`Arguments` has them.

    Raises:
        ValidationError: they hold something else.
    """
    arguments = Arguments.model_validate(args)

    def make_app() -> FastAPI:
        return create_replica(Settings(**arguments.settings), ray.util.get_node_ip_address())

    engine = serve.ingress(make_app)(Engine)
    deployment: Any = serve.deployment(engine, name="Engine")
    application: Application = deployment.options(**arguments.options).bind()
    return application
