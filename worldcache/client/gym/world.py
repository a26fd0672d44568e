"""A model of a server, as environments see it: its spaces, and how an episode of it is opened."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np

from worldcache.client.errors import InvalidInput, ServerBusy
from worldcache.client.exchange import DEFAULT_URL
from worldcache.client.gym import spaces
from worldcache.client.gym.config import Pictures, WorldConfig
from worldcache.client.session_types import Step
from worldcache.client.sync_client import Client
from worldcache.client.sync_sessions import Session
from worldcache.client.types import ModelDescription

LOAD_SECONDS = 600.0
"""How long a model may take to be loaded for the first time."""
POLL_SECONDS = 0.2
SEEDS = 2**31
OPTIONS = ("start", "frames", "depth")


class World:
    """A model and the connection to its server.

    Args:
        config: what was asked of the environment.
        base_url: of the server.
        api_key: if it wants one.
        client: to use instead of one of its own; stays open.

    Raises:
        InvalidInput: no environment can be made of that.
        ApiError: the server has no such model.
        ConnectionFailed: the server does not answer.
    """

    def __init__(
        self, config: WorldConfig, base_url: str | None, api_key: str | None, client: Client | None
    ) -> None:
        if client is not None and (base_url is not None or api_key is not None):
            raise InvalidInput("give base_url and api_key, or a client, which has its own")
        self.config = config
        with ExitStack() as stack:
            self.client = client or stack.enter_context(Client(base_url or DEFAULT_URL, api_key=api_key))
            self.model = describe(self.client, config.model)
            self.observation_space = spaces.observation_space(self.model, config.modalities)
            self.action_space = spaces.action_space(self.model)
            self._depth_high = np.float32(spaces.modality_highs(self.model).get("depth", 0.0))
            default = spaces.default_reset_action(self.model, self.action_space)
            chosen = default if config.reset_action is None else config.reset_action
            self.reset_action = self.encode(chosen)
            self._stack = stack.pop_all()

    @property
    def steps_per_second(self) -> float:
        """Of the world's own time."""
        assert self.model.fps is not None and self.model.chunk_frames is not None
        return self.model.fps / (self.config.frames_per_step or self.model.chunk_frames)

    def encode(self, action: Any) -> Any:
        """An action as it is sent.

        Raises:
            InvalidInput: it is outside the space.
        """
        return spaces.encode_action(self.action_space, action)

    def open(self, generator: np.random.Generator, options: Mapping[str, Any] | None) -> Session:
        """A new session, which has generated nothing yet.

        Args:
            generator: draws its seed, and its start if that was not chosen.
            options: of ``reset``: ``start``, or ``frames`` with or without ``depth``.

        Raises:
            InvalidInput: there is another option.
            ApiError, ConnectionFailed: the session cannot be opened.
        """
        where = self._where(generator, options or {})
        config = self.config
        return self.client.sessions.create(
            model=config.model,
            cache=config.cache,
            seed=int(generator.integers(SEEDS)),
            num_inference_steps=config.num_inference_steps,
            guidance_scale=config.guidance_scale,
            frames_per_step=config.frames_per_step,
            output={"format": "png", "modalities": config.modalities},
            start=where.get("start"),
            frames=where.get("frames"),
            depth=where.get("depth"),
        )

    def pictures(self, step: Step) -> Pictures:
        """A step's frames: ``rgb`` uint8 ``[F, H, W, 3]``; with ``depth``, float32 ``[F, H, W]``, by name."""
        frames = step.frames
        if not self.config.depth:
            return frames["rgb"]
        return {"rgb": frames["rgb"], "depth": np.minimum(frames["depth"], self._depth_high)}

    def close(self) -> None:
        """Close the connections that are its own."""
        self._stack.close()

    def _where(self, generator: np.random.Generator, options: Mapping[str, Any]) -> Mapping[str, Any]:
        if unknown := sorted(options.keys() - set(OPTIONS)):
            raise InvalidInput(f"there is no option {', '.join(unknown)}; there are {', '.join(OPTIONS)}")
        if options:
            return options
        if self.config.start is not None:
            return {"start": self.config.start}
        if not self.model.starts:
            raise InvalidInput(f"model {self.model.id!r} has no starts; give frames in the options of reset")
        return {"start": self.model.starts[generator.integers(len(self.model.starts))]}


def describe(client: Client, model_id: str) -> ModelDescription:
    """A model whose spaces the server knows; one that was never loaded is loaded.

    Raises:
        ServerBusy: it cannot be loaded, or not in time.
    """
    model = client.models.get(model_id)
    if model.action_space is None:
        model = client.models.load(model_id)
    deadline = time.monotonic() + LOAD_SECONDS
    while model.action_space is None:
        if model.status == "failed" or time.monotonic() > deadline:
            reason = model.reason or f"still {model.status} after {LOAD_SECONDS:g} s"
            raise ServerBusy(503, "model_unavailable", f"model {model_id!r} cannot be loaded: {reason}")
        time.sleep(POLL_SECONDS)
        model = client.models.get(model_id)
    return model
