"""What the engine's tests share: requests for the toy model, and a listener that remembers."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from worldcache.core import ChunkFinished, Observation, RolloutEnded, RolloutEvent
from worldcache.engine.engine import Engine
from worldcache.engine.rollout import Rollout, RolloutRequest
from worldcache.models.base import WorldModel
from worldcache.policies.registry import make_policy

CENTRE = Observation(start="centre")
ENGINE_FIELDS = ("client", "priority", "deadline", "pace", "guidance_scale")


def request(
    policy: str = "none", frames: int = 8, seed: int = 1, steps: int = 6, action: int = 1, **more: Any
) -> RolloutRequest:
    """A request; what is no field of it is a parameter of the policy."""
    fields = {name: more.pop(name) for name in ENGINE_FIELDS if name in more}
    return RolloutRequest(CENTRE, (action,) * frames, make_policy(policy, **more), seed, steps, **fields)


class Listener:
    """Collects what it is told."""

    def __init__(self) -> None:
        self.events: list[RolloutEvent] = []
        self.ended = threading.Event()

    def __call__(self, event: RolloutEvent) -> None:
        self.events.append(event)
        if isinstance(event, RolloutEnded):
            self.ended.set()

    @property
    def end(self) -> RolloutEnded:
        last = self.events[-1]
        assert isinstance(last, RolloutEnded)
        return last

    @property
    def chunks(self) -> list[ChunkFinished]:
        return [event for event in self.events if isinstance(event, ChunkFinished)]

    @property
    def decisions(self) -> list[str]:
        return [chunk.stats.decisions for chunk in self.chunks]

    def rgb(self) -> np.ndarray:
        return np.concatenate([chunk.frames["rgb"] for chunk in self.chunks])


def submit(engine: Engine, model: WorldModel, *requests: RolloutRequest) -> list[tuple[Rollout, Listener]]:
    pairs = []
    for one in requests:
        listener = Listener()
        rollout = Rollout(model, one, listener)
        engine.submit(rollout)
        pairs.append((rollout, listener))
    return pairs


def finish(engine: Engine, model: WorldModel, *requests: RolloutRequest) -> list[Listener]:
    pairs = submit(engine, model, *requests)
    while not engine.idle:
        engine.tick()
    return [listener for _, listener in pairs]
