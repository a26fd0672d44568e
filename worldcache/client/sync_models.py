"""Models and policies for ordinary code."""

from __future__ import annotations

from worldcache.client import operations
from worldcache.client.sync_link import Link
from worldcache.client.types import ModelDescription, PolicyDescription


class Models:
    """``/v1/models``."""

    def __init__(self, link: Link) -> None:
        self._link, self._exchange = link, link.exchange

    def list(self) -> tuple[ModelDescription, ...]:
        """The models of the server, and how far they are."""
        return self._link.run(operations.fetch_all(self._exchange, ModelDescription, "/v1/models"))

    def get(self, model_id: str) -> ModelDescription:
        """One model."""
        return self._link.run(operations.model(self._exchange, model_id))

    def load(self, model_id: str) -> ModelDescription:
        """Have a model loaded; its status says whether it is still ``loading``."""
        return self._link.run(operations.model(self._exchange, model_id, "load"))

    def unload(self, model_id: str) -> ModelDescription:
        """Have a model unloaded that no rollout uses; it is loaded again when it is asked for."""
        return self._link.run(operations.model(self._exchange, model_id, "unload"))


class Policies:
    """``/v1/policies``."""

    def __init__(self, link: Link) -> None:
        self._link, self._exchange = link, link.exchange

    def list(self) -> tuple[PolicyDescription, ...]:
        """Every cache policy, with the JSON schema of its parameters."""
        return self._link.run(operations.fetch_all(self._exchange, PolicyDescription, "/v1/policies"))
