"""Models and policies for asyncio."""

from __future__ import annotations

from worldcache.client import operations
from worldcache.client.async_link import AsyncLink
from worldcache.client.types import ModelDescription, PolicyDescription


class AsyncModels:
    """``/v1/models``."""

    def __init__(self, link: AsyncLink) -> None:
        self._link, self._exchange = link, link.exchange

    async def list(self) -> tuple[ModelDescription, ...]:
        """The models of the server, and how far they are."""
        return await self._link.run(operations.fetch_all(self._exchange, ModelDescription, "/v1/models"))

    async def get(self, model_id: str) -> ModelDescription:
        """One model."""
        return await self._link.run(operations.model(self._exchange, model_id))

    async def load(self, model_id: str) -> ModelDescription:
        """Have a model loaded; its status says whether it is still ``loading``."""
        return await self._link.run(operations.model(self._exchange, model_id, "load"))

    async def unload(self, model_id: str) -> ModelDescription:
        """Have a model unloaded that no rollout uses; it is loaded again when it is asked for."""
        return await self._link.run(operations.model(self._exchange, model_id, "unload"))


class AsyncPolicies:
    """``/v1/policies``."""

    def __init__(self, link: AsyncLink) -> None:
        self._link, self._exchange = link, link.exchange

    async def list(self) -> tuple[PolicyDescription, ...]:
        """Every cache policy, with the JSON schema of its parameters."""
        return await self._link.run(operations.fetch_all(self._exchange, PolicyDescription, "/v1/policies"))
