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

import torch
from torch import Tensor

from worldcache.engine.decode import Job, run_now
from worldcache.engine.errors import as_rollout_error, is_out_of_memory
from worldcache.engine.line import WaitingLine
from worldcache.engine.parallel import num_threads
from worldcache.engine.rollout import Priority, Rollout
from worldcache.engine.timing import Stopwatch
from worldcache.errors import DeadlineExceeded, WorldCacheError

logger = logging.getLogger(__name__)


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
        max_active: most rollouts that run at once; the others wait in line.
        max_bytes: most device memory of the rollouts that run at once, as
            :attr:`Rollout.memory_bytes` has it; 0 for no limit. One alone may always run.
    """

    max_batch: int = 8
    max_active: int = 64
    max_bytes: int = 0

    def __post_init__(self) -> None:
        if self.max_batch < 2:
            raise ValueError("max_batch must be at least 2: a guided rollout needs two rows a step")


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
        later: Callable[[Job], None] = run_now,
    ) -> None:
        self.limits = limits or Limits()
        self._observer, self._later = observer, later
        self.host_threads = 1
        self._waiting = WaitingLine()
        self._active: deque[Rollout] = deque()
        self._caps: dict[Hashable, int] = {}
        self._calls: list[tuple[int, Stopwatch]] = []

    def submit(self, rollout: Rollout) -> None:
        """Queue a rollout; it starts at one of the next ticks."""
        self._waiting.add(rollout)

    def cancel(self, rollout: Rollout, error: Exception | None = None) -> bool:
        """Drop a rollout between two ticks; False if it has already ended."""
        if rollout in self._active:
            self._active.remove(rollout)
        elif not self._waiting.remove(rollout):
            return False
        rollout.end("cancelled", error)
        return True

    @property
    def idle(self) -> bool:
        return not self._waiting and not self._active

    @torch.inference_mode()
    def tick(self) -> None:
        """Admit waiting rollouts, compute one batch of FULL steps, run every streak that follows."""
        began = time.perf_counter()
        with num_threads(self.host_threads) as together:
            self._expire()
            self._admit()
            batch = self._next_batch()
            evidence = self._read(self._evaluate(batch, together))
            seconds = time.perf_counter() - began
            for rollout, values in evidence:
                with self._alone(rollout):
                    rollout.advance(values, seconds)
                    if rollout.done:
                        self._active.remove(rollout)
                        rollout.end("succeeded")
        if batch:
            self._report(batch[0].model.info.id, time.perf_counter() - began)

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
        now = time.monotonic()
        for rollout in (*self._waiting, *self._active):
            if rollout.request.deadline is not None and rollout.request.deadline <= now:
                self.cancel(rollout, DeadlineExceeded("the deadline passed before the rollout had ended"))

    def _admit(self) -> None:
        """Start waiting rollouts while there is room; what waits for idleness needs no room."""
        while (rollout := self._waiting.next()) is not None and self._has_room(rollout):
            self._waiting.remove(rollout)
            self._active.append(rollout)
            with self._alone(rollout):
                rollout.start(self._later)

    def _has_room(self, rollout: Rollout) -> bool:
        busy = [other for other in self._active if other.request.priority < Priority.IDLE]
        if not busy:
            return True
        used = sum(other.memory_bytes for other in self._active)
        fits = not self.limits.max_bytes or used + rollout.memory_bytes <= self.limits.max_bytes
        return fits and len(busy) < self.limits.max_active and rollout.request.priority < Priority.IDLE

    def _next_batch(self) -> list[Rollout]:
        """Rollouts whose rows share a call; they move to the back.

        The one that has waited longest says what kind of rows it is, so that kinds take turns. Among its
        kind urgent ones go first. Idle ones take part only if there is nothing else to do.
        """
        wanted = [other for other in self._active if other.request.priority < Priority.IDLE]
        kinds = [(rollout, _batch_key(rollout)) for rollout in wanted or self._active]
        group = [rollout for rollout, key in kinds if key == kinds[0][1]]
        batch: list[Rollout] = []
        size = 0
        for rollout in sorted(group, key=lambda rollout: rollout.request.priority):
            rows = len(rollout.rows())
            if not batch or size + rows <= self._caps.get(kinds[0][1], self.limits.max_batch):
                batch.append(rollout)
                size += rows
        for rollout in batch:
            self._active.remove(rollout)
            self._active.append(rollout)
        return batch

    def _evaluate(self, batch: list[Rollout], threads: int) -> list[tuple[Rollout, Tensor]]:
        """Each rollout's outputs. A batch that fails is halved, until one fails alone.

        The backbone alone computes with that many threads of the host.
        """
        if not batch:
            return []
        rows = [rollout.rows() for rollout in batch]
        model, watch = batch[0].model, Stopwatch(batch[0].model.device)
        watch.start()
        try:
            with num_threads(threads):
                outputs = model.evaluate([row for group in rows for row in group])
            watch.stop()
        except Exception as error:
            if len(batch) == 1:
                self._fail(batch[0], error)
                return []
            logger.warning("a batch of %d rollouts failed and is halved: %s", len(batch), error)
            short_of_memory = is_out_of_memory(error)
        else:
            self._calls.append((len(outputs), watch))
            return list(zip(batch, outputs.split([len(group) for group in rows]), strict=True))
        middle = len(batch) // 2
        if short_of_memory:  # not while the exception is handled: it keeps the memory
            self._make_room(model.batch_key(rows[0][0]), sum(map(len, rows[:middle])), model.device)
        return self._evaluate(batch[:middle], threads) + self._evaluate(batch[middle:], threads)

    def _make_room(self, key: Hashable, rows: int, device: torch.device) -> None:
        """Give cached memory back, and keep batches of this kind to ``rows`` until nothing runs."""
        self._caps[key] = rows
        if device.type == "cuda":
            torch.cuda.empty_cache()

    def _read(self, outputs: Sequence[tuple[Rollout, Tensor]]) -> list[tuple[Rollout, list[float]]]:
        """Let every rollout learn from its outputs; bring all their evidence to the host in one read."""
        pending: list[tuple[Rollout, Tensor]] = []
        for rollout, output in outputs:
            with self._alone(rollout):
                pending.append((rollout, rollout.take(_tokens(rollout, output))))
        if not pending:
            return []
        values = iter(torch.cat([evidence for _, evidence in pending]).tolist())
        return [(rollout, [next(values) for _ in range(len(evidence))]) for rollout, evidence in pending]

    def _report(self, model: str, seconds: float) -> None:
        """Tell the observer of the tick; the device has been waited for by now."""
        calls = tuple((rows, watch.seconds) for rows, watch in self._calls)
        self._calls.clear()
        if not self._active:
            self._caps.clear()
        if calls:
            self._observer(Tick(model, calls, seconds))

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
        if rollout in self._active:
            self._active.remove(rollout)
        self._waiting.remove(rollout)
        rollout.end("failed", as_rollout_error(error))


def _tokens(rollout: Rollout, outputs: Tensor) -> Tensor:
    """A rollout's outputs as tokens of its own: a part that a policy keeps would keep the whole batch."""
    tokens = rollout.model.tokens(outputs.shape[1:]).to_tokens(outputs)
    return tokens.clone() if tokens.untyped_storage().nbytes() > tokens.nbytes else tokens


def _batch_key(rollout: Rollout) -> Hashable:
    return rollout.model.batch_key(rollout.rows()[0])
