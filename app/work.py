"""Asynchronous rollouts that outlive the process which accepted them: what is written down, and where."""

from __future__ import annotations

from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict

from app.audit import Choice
from app.schemas import RolloutBody
from app.store import RolloutRecord
from worldcache.engine.rollout import RolloutRequest
from worldcache.policies.registry import parameters_of


class Order(BaseModel):
    """All that another process needs to run a rollout, besides its record.

    Attributes:
        body: as it was sent, with everything that was drawn or chosen filled in.
        client: whose it is, for taking turns.
        preset: that it is run with; ``None`` for a policy that the client spelt out.
        free: whether the policy is the deadline's to choose.
    """

    model_config = ConfigDict(frozen=True)

    body: RolloutBody
    client: str
    preset: str | None = None
    free: bool = False


class WorkQueue(Protocol):
    """Where accepted rollouts wait for a process that runs them."""

    async def offer(self, record: RolloutRecord, order: Order) -> None:
        """Keep a rollout and its order. When this returns, no process's end can lose it.

        Raises:
            Unavailable: 503, it is not accepted.
            ApiError: 429, its client has too many.
        """

    async def adopt(self, record: RolloutRecord, order: Order) -> None:
        """The same for a live rollout that some process runs for a client that waits; it lets go of it.

        Nothing happens if it has ended or is kept already.

        Raises:
            Unavailable: 503, nobody can be told.
        """


def write_order(body: RolloutBody, request: RolloutRequest, choice: Choice, client: str, free: bool) -> Order:
    """The order of a request that was read.

    Args:
        body: that was sent.
        request: what was made of it.
        choice: whose policy it is.
        client: whose it is.
        free: whether the policy is the deadline's to choose.
    """
    cache: dict[str, Any] = {"policy": request.policy.name, **parameters_of(request.policy)}
    filled = {
        "seed": request.seed,
        "num_inference_steps": request.num_inference_steps,
        "guidance_scale": request.guidance_scale,
        "cache": body.cache if free else cache,
    }
    return Order(body=body.model_copy(update=filled), client=client, preset=choice.preset, free=free)
