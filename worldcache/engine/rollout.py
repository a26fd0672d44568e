"""A rollout: frames, actions and context, chunk after chunk. Denoising is ``denoise.py``'s."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from torch import Tensor

from worldcache.core import (
    ChunkFinished,
    ChunkStats,
    Observation,
    RolloutEnded,
    RolloutEvent,
    RolloutStarted,
    RolloutStats,
)
from worldcache.engine.denoise import ChunkDenoiser
from worldcache.models.base import Row, WorldModel
from worldcache.policies.base import Policy
from worldcache.sampler import chunk_generator

Listener: TypeAlias = Callable[[RolloutEvent], None]
"""Told of a rollout's events, on the engine's thread: it must return at once and must not raise."""


@dataclass(frozen=True)
class RolloutRequest:
    """What to generate.

    Attributes:
        observation: where to start.
        actions: one entry a frame, as the model's action space parses them.
        policy: which steps to compute.
        seed: of all randomness.
        num_inference_steps: denoise steps per chunk.
        guidance_scale: 1 for none.
    """

    observation: Observation
    actions: tuple[Any, ...]
    policy: Policy[Any, Any]
    seed: int
    num_inference_steps: int
    guidance_scale: float = 1.0


@dataclass(eq=False)
class Rollout:
    """The state of one rollout; owned by the engine, freed with it."""

    model: WorldModel
    request: RolloutRequest
    listener: Listener
    submitted: float = field(default_factory=time.monotonic)
    _frame: int = field(default=0, init=False)
    _chunks: list[ChunkStats] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self._stats = RolloutStats(policy=self.request.policy.name)
        self._context: Any = None
        self._denoiser: ChunkDenoiser | None = None

    @property
    def done(self) -> bool:
        return self._frame >= len(self.request.actions)

    def start(self) -> None:
        """Leave the queue: read the observation and prepare the first chunk."""
        self._stats = replace(self._stats, queue_seconds=time.monotonic() - self.submitted)
        self.listener(RolloutStarted(self._stats.queue_seconds))
        self._context = self.model.begin(self.request.observation)
        self._begin_chunk()

    def rows(self) -> list[Row]:
        """The backbone rows that the rollout is waiting for."""
        assert self._denoiser is not None
        return self._denoiser.rows()

    def take(self, outputs: Tensor) -> Tensor:
        """Hand in the rows' outputs; returns evidence to be read by the host."""
        assert self._denoiser is not None
        return self._denoiser.take(outputs)

    def advance(self, evidence: Sequence[float], seconds: float) -> None:
        """Go on to the next FULL step, finishing the chunk on the way if it is done.

        Args:
            evidence: of :meth:`take`, on the host.
            seconds: time of the backbone call and the read, for the statistics.
        """
        assert self._denoiser is not None
        began = time.perf_counter()
        self._denoiser.advance(evidence)
        spent = seconds + time.perf_counter() - began
        self._stats = replace(self._stats, denoise_seconds=self._stats.denoise_seconds + spent)
        if self._denoiser.done:
            self._finish_chunk(self._denoiser)

    def end(self, status: str, error: BaseException | None = None) -> None:
        """Tell the listener that nothing more will come."""
        stats = replace(
            self._stats, chunks=tuple(self._chunks), latency_seconds=time.monotonic() - self.submitted
        )
        self.listener(RolloutEnded(status, stats, error))

    def _chunk_actions(self) -> tuple[Any, ...]:
        """The chunk's actions; the last one is repeated to fill it."""
        size = self.model.info.chunk_frames
        actions = self.request.actions[self._frame : self._frame + size]
        return actions + actions[-1:] * (size - len(actions))

    def _begin_chunk(self) -> None:
        self._denoiser = ChunkDenoiser(
            self.model,
            self.request.policy,
            self.model.condition(self._context, self._chunk_actions()),
            self.request.num_inference_steps,
            self.request.guidance_scale,
            chunk_generator(self.request.seed, self._frame),
        )

    def _finish_chunk(self, denoiser: ChunkDenoiser) -> None:
        began = time.perf_counter()
        frames = self.model.decode(denoiser.latent)
        self._stats = replace(
            self._stats, decode_seconds=self._stats.decode_seconds + time.perf_counter() - began
        )
        if self._stats.first_frame_seconds is None:
            self._stats = replace(self._stats, first_frame_seconds=time.monotonic() - self.submitted)
        wanted = min(self.model.info.chunk_frames, len(self.request.actions) - self._frame)
        stats = denoiser.stats(len(self._chunks))
        self._chunks.append(stats)
        self.listener(
            ChunkFinished(self._frame, {name: array[:wanted] for name, array in frames.items()}, stats)
        )
        actions = self._chunk_actions()
        self._frame += wanted
        self._denoiser = None
        if not self.done:
            self._context = self.model.advance(self._context, denoiser.latent, actions)
            self._begin_chunk()
