"""The engine: one batched backbone call per tick for all active rollouts of a device.

Knows nothing about HTTP, Redis or Prometheus. It is driven by one thread (``thread.py`` has one);
all rollout state lives here and nowhere else.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import WeakSet

import torch
from torch import Tensor

from worldcache.engine.decode import Later, run_now
from worldcache.engine.errors import as_rollout_error, is_out_of_memory
from worldcache.engine.line import WaitingLine
from worldcache.engine.parallel import num_threads
from worldcache.engine.rollout import Priority, Rollout
from worldcache.engine.timing import Stopwatch
from worldcache.errors import WorldCacheError
from worldcache.models.base import Row

logger = logging.getLogger(__name__)

ADMISSION_SECONDS = 0.1
"""Once the admissions of a tick have taken so long, or as long as a call, the next step goes first."""

GOOD_CALLS = 100
"""Calls without a shortage of memory after which a batch that was halved may be twice as large again."""


@dataclass(frozen=True)
class Tick:
    """One tick, as told to the engine's observer. Times in seconds.

    Attributes:
        model: its id.
        calls: rows and time of each backbone call; one, unless a batch had to be halved.
        seconds: of the whole tick.
    """

    model: str
    calls: tuple[tuple[int, float], ...]
    seconds: float

    @property
    def rows(self) -> int:
        return sum(rows for rows, _ in self.calls)


@dataclass(frozen=True)
class Limits:
    """What bounds an engine.

    Attributes:
        max_batch: most backbone rows in one call.
        max_active: most rollouts that run at once; the others wait in line. An urgent one does not wait
            for those that are less so: each counts what is at least as urgent as itself.
        max_bytes: most device memory of the rollouts that run at once or wait for their last frames, as
            :attr:`Rollout.memory_bytes` has it; 0 for no limit. One alone may always run.
    """

    max_batch: int = 8
    max_active: int = 64
    max_bytes: int = 0

    def __post_init__(self) -> None:
        if self.max_batch < 2:
            raise ValueError("max_batch must be at least 2: a guided rollout needs two rows a step")
        if self.max_active < 1:
            raise ValueError("max_active must be at least 1")


@dataclass(frozen=True)
class _Step:
    """A FULL step that a rollout waits for: rows, which share a call with others of their kind."""

    rollout: Rollout
    rows: list[Row]
    kind: Hashable


@dataclass
class _Cap:
    """Most rows of a kind in one call, since there was no memory for more, and calls that fitted since."""

    rows: int
    calls: int = 0


class Engine:
    """Runs rollouts, many at once.

    Args:
        limits: bounds of a batch and of what runs at once.
        observer: told of every tick, on the engine's thread.
        later: runs what turns finished chunks into frames, in the order it is given; at once if left out.

    Attributes:
        host_threads: with how many threads the host computes between two backbone calls.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        observer: Callable[[Tick], None] = lambda tick: None,
        later: Later = run_now,
    ) -> None:
        self.limits = limits or Limits()
        self._observer, self._later = observer, later
        self.host_threads = 1
        self._waiting = WaitingLine()
        self._active: deque[Rollout] = deque()
        self._leaving: WeakSet[Rollout] = WeakSet()
        self._caps: dict[Hashable, _Cap] = {}
        self._calls: list[tuple[int, Stopwatch]] = []
        self._call_seconds = 0.0

    def submit(self, rollout: Rollout) -> None:
        """Queue a rollout; it starts at one of the next ticks."""
        self._waiting.add(rollout)

    def cancel(self, rollout: Rollout, error: Exception | None = None) -> bool:
        """Drop a rollout between two ticks, with whatever of it is not decoded; False if it has ended."""
        return self._end(rollout, "cancelled", error)

    @property
    def idle(self) -> bool:
        return not self._waiting and not self._active

    @property
    def stalled(self) -> bool:
        """Whether all that runs waits for frames to be decoded."""
        return bool(self._active) and not any(rollout.ready for rollout in self._active)

    @torch.inference_mode()
    def tick(self) -> None:
        """Admit waiting rollouts, compute one batch of FULL steps, run every streak that follows."""
        began = time.perf_counter()
        with num_threads(self.host_threads) as together:
            self._expire()
            self._admit()
            gathered = time.perf_counter()
            batch = self._next_batch()
            evidence = self._read(self._evaluate(batch, together))
            seconds = time.perf_counter() - gathered
            for rollout, values in evidence:
                with self._alone(rollout):
                    rollout.advance(values, seconds)
                    if rollout.done:
                        self._end(rollout, "succeeded")
        if batch:
            self._report(batch[0].rollout.model.info.id, time.perf_counter() - began)

    def cancel_all(self) -> None:
        """Drop every rollout."""
        for rollout in (*self._waiting, *self._active):
            self.cancel(rollout)

    def abort(self, error: Exception) -> None:
        """End every rollout with ``error``; for a failure that is no single rollout's."""
        for rollout in (*self._waiting, *self._active):
            self._fail(rollout, error)

    def _expire(self) -> None:
        """Drop what has missed its deadline."""
        for rollout in (*self._waiting, *self._active):
            if rollout.late:
                self.cancel(rollout, rollout.late_error())

    def _admit(self) -> None:
        """Start waiting rollouts while there is room, for no longer than others wait for a call anyway."""
        end = time.perf_counter() + max(ADMISSION_SECONDS, self._call_seconds)
        while (rollout := self._waiting.next()) is not None:
            with self._alone(rollout):
                if not self._has_room(rollout):
                    return
                self._waiting.take(rollout)
                self._active.append(rollout)
                rollout.start(self._later)
            if time.perf_counter() > end:
                return

    def _has_room(self, rollout: Rollout) -> bool:
        """Whether a rollout may start now; what waits for idleness takes no room and waits for all others."""
        urgency, most = rollout.request.priority, self.limits.max_bytes
        if urgency == Priority.IDLE:
            return not self._active
        busy = [other for other in self._active if other.request.priority < Priority.IDLE]
        if not busy:
            return True
        if sum(other.request.priority <= urgency for other in busy) >= self.limits.max_active:
            return False
        held = (*busy, *(other for other in self._leaving if not other.ended), rollout)
        return not most or sum(other.memory_bytes for other in held) <= most

    def _next_batch(self) -> list[_Step]:
        """Steps whose rows share a call; their rollouts move to the back.

        The rollout that has waited longest takes part, so that nobody waits for ever, and says what kind of
        rows it is, so that kinds take turns. Among its kind the urgent ones go first. Idle ones take part
        only if there is nothing else to do.
        """
        wanted = [other for other in self._active if other.request.priority < Priority.IDLE]
        steps: list[_Step] = []
        for rollout in wanted or list(self._active):
            if rollout.ready:
                with self._alone(rollout):
                    rows = rollout.rows()
                    steps.append(_Step(rollout, rows, rollout.model.batch_key(rows[0])))
        if not steps:
            return []
        kind, batch = steps[0].kind, steps[:1]
        most = self._caps[kind].rows if kind in self._caps else self.limits.max_batch
        size = len(steps[0].rows)
        for step in sorted(steps[1:], key=lambda step: step.rollout.request.priority):
            if step.kind == kind and size + len(step.rows) <= most:
                batch.append(step)
                size += len(step.rows)
        for step in batch:
            self._active.remove(step.rollout)
            self._active.append(step.rollout)
        return batch

    def _evaluate(self, batch: list[_Step], threads: int) -> list[tuple[Rollout, Tensor]]:
        """Each rollout's outputs. A batch that fails is halved, until one fails alone.

        The backbone alone computes with that many threads of the host.
        """
        if not batch:
            return []
        rows = [row for step in batch for row in step.rows]
        model, kind = batch[0].rollout.model, batch[0].kind
        watch = Stopwatch(model.device)
        watch.start()
        try:
            with num_threads(threads):
                outputs = model.evaluate(rows)
            watch.stop()
            parts = outputs.split([len(step.rows) for step in batch])
        except Exception as error:
            if len(batch) == 1:
                self._fail(batch[0].rollout, error)
                return []
            logger.warning("a batch of %d rollouts failed and is halved: %s", len(batch), error)
            short_of_memory = is_out_of_memory(error)
        else:
            self._calls.append((len(rows), watch))
            self._widen(kind)
            return [(step.rollout, part) for step, part in zip(batch, parts, strict=True)]
        middle = len(batch) // 2
        if short_of_memory:  # not while the exception is handled: it keeps the memory
            self._make_room(kind, sum(len(step.rows) for step in batch[:middle]), model.device)
        return self._evaluate(batch[:middle], threads) + self._evaluate(batch[middle:], threads)

    def _make_room(self, kind: Hashable, rows: int, device: torch.device) -> None:
        """Give cached memory back, and keep batches of this kind to ``rows`` for a while."""
        self._caps[kind] = _Cap(rows)
        if device.type == "cuda":
            torch.cuda.empty_cache()

    def _widen(self, kind: Hashable) -> None:
        """Allow a batch that was halved to be larger again, once calls have fitted for long enough."""
        cap = self._caps.get(kind)
        if cap is None:
            return
        cap.calls += 1
        if cap.calls >= GOOD_CALLS:
            self._caps[kind] = cap = _Cap(2 * cap.rows)
        if cap.rows >= self.limits.max_batch:
            del self._caps[kind]

    def _read(self, outputs: Sequence[tuple[Rollout, Tensor]]) -> list[tuple[Rollout, list[float]]]:
        """Let every rollout learn from its outputs; bring all their evidence to the host in one read."""
        pending: list[tuple[Rollout, Tensor]] = []
        for rollout, output in outputs:
            with self._alone(rollout):
                pending.append((rollout, rollout.take(_tokens(rollout, output))))
        if not pending:
            self._calls.clear()  # nobody has waited for the device, so it cannot tell how long they took
            return []
        values = iter(torch.cat([evidence for _, evidence in pending]).tolist())
        return [(rollout, [next(values) for _ in range(len(evidence))]) for rollout, evidence in pending]

    def _report(self, model: str, seconds: float) -> None:
        """Tell the observer of the tick; the device has been waited for by now."""
        calls = tuple((rows, watch.seconds) for rows, watch in self._calls)
        self._calls.clear()
        if not self._active:
            self._caps.clear()
        if not calls:
            return
        self._call_seconds = max(taken for _, taken in calls)
        try:
            self._observer(Tick(model, calls, seconds))
        except Exception:
            logger.exception("a tick cannot be observed")

    @contextmanager
    def _alone(self, rollout: Rollout) -> Iterator[None]:
        """Whatever goes wrong inside is this rollout's failure and nobody else's."""
        try:
            yield
        except Exception as error:
            self._fail(rollout, error)

    def _fail(self, rollout: Rollout, error: Exception) -> None:
        if not isinstance(error, WorldCacheError):
            logger.error("a rollout failed", exc_info=error)
        self._end(rollout, "failed", as_rollout_error(error))

    def _end(self, rollout: Rollout, status: str, error: Exception | None = None) -> bool:
        """Let go of a rollout; False if its end has been told already."""
        if rollout in self._active:
            self._active.remove(rollout)
        self._waiting.remove(rollout)
        self._leaving.add(rollout)
        return rollout.end(status, error)


def _tokens(rollout: Rollout, outputs: Tensor) -> Tensor:
    """A rollout's outputs as tokens of its own: a part that a policy keeps would keep the whole batch."""
    tokens = rollout.model.tokens(outputs.shape[1:]).to_tokens(outputs)
    return tokens.clone() if tokens.untyped_storage().nbytes() > tokens.nbytes else tokens
