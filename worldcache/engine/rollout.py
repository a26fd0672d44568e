"""A rollout: frames, actions and context, chunk after chunk. Denoising is ``denoise.py``'s."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from functools import cached_property, partial
from typing import Any, TypeAlias

from torch import Tensor

from worldcache.core import (
    UNCONDITIONED,
    ChunkFinished,
    ChunkStats,
    Conditioning,
    ModelInfo,
    Observation,
    RolloutEnded,
    RolloutEvent,
    RolloutStarted,
    RolloutState,
    RolloutStats,
)
from worldcache.decoded import Decoded
from worldcache.engine.decode import Later, run_now
from worldcache.engine.denoise import ChunkDenoiser
from worldcache.engine.errors import as_rollout_error
from worldcache.errors import DeadlineExceeded
from worldcache.models.base import ChunkTask, Denoiser, Row, WorldModel
from worldcache.policies.base import Policy
from worldcache.sampler import chunk_generator

logger = logging.getLogger(__name__)

Listener: TypeAlias = Callable[[RolloutEvent], None]
"""Told of a rollout's events, on the engine's threads: it must return at once. What it raises is logged."""

LATENT_COPIES = 4
"""Latents that a rollout may hold at once: before and after a step, in the model's layout and as tokens."""


CHUNKS_AHEAD = 4
"""Chunks of a rollout that may wait to be decoded; before it begins one more, the decoding catches up."""


class Priority(IntEnum):
    """Which rollouts go first. ``IDLE`` ones are computed only while there are no others at all."""

    INTERACTIVE = 0
    STANDARD = 1
    BACKGROUND = 2
    IDLE = 3


@dataclass(frozen=True)
class RolloutRequest:
    """What to generate.

    Attributes:
        observation: where to start, if not from a state.
        actions: one entry a frame, as the model's action space parses them.
        policy: which steps to compute.
        conditioning: whatever else it is conditioned on.
        seed: of all randomness.
        num_inference_steps: denoise steps per chunk.
        guidance_scale: 1 for none.
        client: whose it is; clients take turns.
        priority: what goes before it and what behind it.
        deadline: by ``time.monotonic()``, when it is cancelled unless its last chunk is being decoded
            already; ``None`` for never.
        pace: chooses the policy of each chunk anew, from how many chunks are left, this one included,
            and the seconds until the deadline.
        state: where to go on from instead, as an earlier rollout of the same model and seed left it.
    """

    observation: Observation | None
    actions: tuple[Any, ...]
    policy: Policy[Any, Any]
    seed: int
    num_inference_steps: int
    guidance_scale: float = 1.0
    client: str = ""
    priority: Priority = Priority.STANDARD
    deadline: float | None = None
    pace: Callable[[int, float], Policy[Any, Any]] | None = None
    state: RolloutState | None = None
    conditioning: Conditioning = UNCONDITIONED

    def __post_init__(self) -> None:
        if (self.observation is None) == (self.state is None):
            raise ValueError("a rollout starts either from an observation or from a state")

    @property
    def branches(self) -> int:
        """Backbone rows of a FULL step: guidance takes a second one."""
        return 1 if self.guidance_scale == 1.0 else 2

    @property
    def frames_before(self) -> int:
        """Frames that led to where it starts."""
        return 0 if self.state is None else self.state.frames

    def frame_count(self, info: ModelInfo) -> int:
        """Frames that come out: one an action, after those that are observed and not generated."""
        return len(self.actions) + (info.observed_frames if self.state is None else 0)


@dataclass
class _Output:
    """What has been handed out; written where chunks are decoded, and nowhere else.

    Attributes:
        handled: chunks that were decoded, or that nobody wanted any more.
        failure: what made the decoding of a chunk fail.
        late: whether the deadline passed before a chunk was decoded.
    """

    chunks: list[ChunkStats] = field(default_factory=list)
    first_frame_seconds: float | None = None
    decode_seconds: float = 0.0
    handled: int = 0
    failure: Exception | None = None
    late: bool = False


@dataclass(eq=False)
class Rollout:
    """The state of one rollout; owned by the engine, freed with it.

    Args:
        model: the model that it runs on.
        request: what to generate.
        listener: told of its events.
        submitted: when it was handed in, by ``time.monotonic()``.

    Attributes:
        ended: whether the listener has heard the end.
    """

    model: WorldModel
    request: RolloutRequest
    listener: Listener
    submitted: float = field(default_factory=time.monotonic)
    _frame: int = field(default=0, init=False)
    _chunk: int = field(default=0, init=False)
    ended: bool = field(default=False, init=False)
    _output: _Output = field(default_factory=_Output, init=False)

    def __post_init__(self) -> None:
        self._stats = RolloutStats(policy=self.request.policy.name)
        self._later: Later = run_now
        self._lock = threading.RLock()  # around what the listener hears, and when it has heard the end
        self._context: Any = None
        self._denoiser: Denoiser | None = None
        self._before: Decoded | None = None

    @property
    def done(self) -> bool:
        return self._frame >= len(self.request.actions)

    @property
    def ready(self) -> bool:
        """Whether it can go on; if not, the decoding of its chunks has to catch up."""
        if self._output.failure is not None:
            return True  # which is told when it goes on
        if self._chunk - self._output.handled >= CHUNKS_AHEAD:
            return False
        return self._denoiser is not None or self._before is None or self._before.ready

    @property
    def late(self) -> bool:
        """Whether its deadline has passed."""
        deadline = self.request.deadline
        return deadline is not None and deadline <= time.monotonic()

    def late_error(self) -> DeadlineExceeded:
        return DeadlineExceeded("the deadline passed before the rollout had ended")

    @cached_property
    def memory_bytes(self) -> int:
        """Device memory that the rollout may take beside the model's, activations apart."""
        length = self.model.info.chunk_length(len(self.request.actions))
        view = self.model.tokens(self.model.latent_shape(length))
        token_matrix = 4 * view.layout.tokens_per_branch * view.width
        return token_matrix * (LATENT_COPIES + self.request.branches * self.request.policy.kept_outputs)

    def start(self, later: Later = run_now) -> None:
        """Leave the queue: read the observation, unless there is a state, and prepare the first chunk.

        Args:
            later: runs what turns a finished chunk into frames.
        """
        self._later = later
        self._stats = replace(self._stats, queue_seconds=time.monotonic() - self.submitted)
        self._tell(RolloutStarted(self._stats.queue_seconds))
        if self.request.state is not None:
            self._context = self.request.state.context
        else:
            assert self.request.observation is not None
            self._context = self.model.begin(self.request.observation, self.request.conditioning)
        self._begin_chunk()

    def rows(self) -> list[Row]:
        """The backbone rows that the rollout is waiting for; only once it is :attr:`ready`.

        Raises:
            Exception: whatever made the decoding of an earlier chunk fail.
        """
        if self._output.failure is not None:
            raise self._output.failure
        if self._denoiser is None:
            self._begin_chunk()
        assert self._denoiser is not None
        return self._denoiser.rows()

    def take(self, tokens: Tensor) -> Tensor:
        """Hand in the rows' outputs as tokens; returns evidence to be read by the host."""
        assert self._denoiser is not None
        return self._denoiser.take(tokens)

    def advance(self, evidence: Sequence[float], seconds: float) -> None:
        """Go on to the next FULL step, finishing the chunk on the way if it is done.

        Args:
            evidence: of :meth:`take`, on the host.
            seconds: from gathering the rows to the read, for the statistics.
        """
        assert self._denoiser is not None
        began = time.perf_counter()
        self._denoiser.advance(evidence)
        spent = seconds + time.perf_counter() - began
        self._stats = replace(self._stats, denoise_seconds=self._stats.denoise_seconds + spent)
        if self._denoiser.done:
            self._finish_chunk(self._denoiser)

    def end(self, status: str, error: Exception | None = None) -> bool:
        """Tell the listener, after the chunks on their way, that nothing more will come.

        A cancellation is told at once; chunks that have not been decoded are dropped.

        Returns:
            False if the listener has heard the end before.
        """
        denoiser, self._denoiser = self._denoiser, None
        self._context = self._before = None
        if denoiser is not None:
            _close(denoiser)
        if self.ended:
            return False
        if status == "cancelled":
            self._say_end(status, error)
        else:
            self._later(partial(self._say_end, status, error), self.request.priority)
        return True

    def _tell(self, event: RolloutEvent) -> None:
        """Let the listener know, unless it has heard the end."""
        with self._lock:
            if self.ended:
                return
            self.ended = isinstance(event, RolloutEnded)
            try:
                self.listener(event)
            except Exception:
                logger.exception("the listener of a rollout failed")

    def _chunk_actions(self) -> tuple[Any, ...]:
        """The chunk's actions; the last one is repeated to fill it."""
        left = self.request.actions[self._frame :]
        size = self.model.info.chunk_length(len(left))
        return left[:size] + left[-1:] * (size - len(left))

    def _begin_chunk(self) -> None:
        actions = self._chunk_actions()
        generator = chunk_generator(self.request.seed, self.request.frames_before + self._frame)
        task = ChunkTask(
            self._choose_policy(),
            self.model.condition(self._context, actions, generator),
            len(actions),
            self.request.num_inference_steps,
            self.request.guidance_scale,
            generator,
        )
        self._denoiser = self.model.own_denoiser(task) or ChunkDenoiser(self.model, task)

    def _choose_policy(self) -> Policy[Any, Any]:
        """The request's policy, or what its pace makes of the time that is left."""
        if self.request.pace is None or self.request.deadline is None:
            return self.request.policy
        chunks = self.model.info.chunks(len(self.request.actions) - self._frame)
        return self.request.pace(chunks, self.request.deadline - time.monotonic())

    def _finish_chunk(self, denoiser: Denoiser) -> None:
        """Hand the chunk over to be decoded, and go on with the next one from its latent."""
        size, latent, state = denoiser.frames, denoiser.latent, None
        decoded = Decoded(partial(self.model.decode, latent))
        wanted = min(size, len(self.request.actions) - self._frame)
        if wanted == size:
            self._context = self.model.advance(self._context, latent, decoded, self._chunk_actions())
            state = RolloutState(self._context, self.request.frames_before + self._frame + size)
        hand_out = partial(self._hand_out, denoiser, decoded, self._chunk, self._frame, wanted, state)
        self._later(hand_out, self.request.priority)
        self._chunk += 1
        self._frame += wanted
        self._denoiser = None
        self._before = decoded if self.model.goes_on_from_frames else None
        if not self.done and self._before is None:
            self._begin_chunk()

    def _hand_out(
        self,
        denoiser: Denoiser,
        decoded: Decoded,
        chunk: int,
        generated: int,
        wanted: int,
        state: RolloutState | None,
    ) -> None:
        """Decode a chunk and tell the listener; a failure waits for the engine to notice it.

        Args:
            generated: frames of the chunks before it.
            wanted: of its own.
        """
        output = self._output
        try:
            if self.ended or output.late or output.failure is not None:
                return
            if self.late:
                output.late = True
                return
            frames = decoded.take()
            output.decode_seconds += decoded.seconds
            stats = denoiser.stats(chunk)
        except Exception as error:
            logger.error("a chunk cannot be decoded", exc_info=error)
            output.failure = as_rollout_error(error)
            return
        finally:
            _close(denoiser)
            output.handled += 1
        if output.first_frame_seconds is None:
            output.first_frame_seconds = time.monotonic() - self.submitted
        observed = self.model.info.observed_frames
        shown = observed if self.request.state is None else 0
        first = observed if chunk else observed - shown  # observed frames are shown once, or not at all
        kept = {name: array[first : observed + wanted] for name, array in frames.items()}
        output.chunks.append(stats)
        self._tell(ChunkFinished(generated + shown if chunk else 0, kept, stats, state, decoded.seconds))

    def _say_end(self, status: str, error: Exception | None) -> None:
        output = self._output
        if status == "succeeded" and output.failure is not None:
            status, error = "failed", output.failure
        elif status == "succeeded" and output.late:
            status, error = "cancelled", self.late_error()
        stats = replace(
            self._stats,
            chunks=tuple(output.chunks),
            first_frame_seconds=output.first_frame_seconds,
            decode_seconds=output.decode_seconds,
            latency_seconds=time.monotonic() - self.submitted,
        )
        self._tell(RolloutEnded(status, stats, error))


def _close(denoiser: Denoiser) -> None:
    try:
        denoiser.close()
    except Exception:
        logger.exception("a denoiser cannot be closed")
