"""The engine: one batched backbone call per tick for all active rollouts of a device.

Knows nothing about HTTP, Redis or Prometheus. It is driven by one thread (``thread.py`` has one);
all rollout state lives here and nowhere else.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from worldcache.engine.rollout import Rollout
from worldcache.errors import WorldCacheError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BackboneCall:
    """One evaluation of a model, as told to the engine's observer."""

    model: str
    rows: int
    seconds: float


class Engine:
    """Runs rollouts, many at once.

    Args:
        max_batch: most backbone rows in one call.
        max_active: most rollouts that run at once; the others wait in line.
        observer: told of every backbone call, on the engine's thread.
    """

    def __init__(
        self,
        max_batch: int = 8,
        max_active: int = 64,
        observer: Callable[[BackboneCall], None] | None = None,
    ) -> None:
        if max_batch < 2:
            raise ValueError("max_batch must be at least 2: a guided rollout needs two rows a step")
        self.max_batch, self.max_active = max_batch, max_active
        self._observer = observer or (lambda call: None)
        self._waiting: deque[Rollout] = deque()
        self._active: deque[Rollout] = deque()

    def submit(self, rollout: Rollout) -> None:
        """Queue a rollout; it starts at the next tick."""
        self._waiting.append(rollout)

    def cancel(self, rollout: Rollout) -> bool:
        """Drop a rollout between two ticks; False if it has already ended."""
        for group in (self._waiting, self._active):
            if rollout in group:
                group.remove(rollout)
                rollout.end("cancelled")
                return True
        return False

    @property
    def idle(self) -> bool:
        return not self._waiting and not self._active

    @torch.inference_mode()
    def tick(self) -> None:
        """Admit waiting rollouts, compute one batch of FULL steps, run every streak that follows."""
        self._admit()
        began = time.perf_counter()
        outputs = self._evaluate(self._next_batch())
        evidence = self._read(outputs)
        seconds = time.perf_counter() - began
        for rollout, values in evidence:
            with self._alone(rollout):
                rollout.advance(values, seconds)
                if rollout.done:
                    self._active.remove(rollout)
                    rollout.end("succeeded")

    def cancel_all(self) -> None:
        """Drop every rollout."""
        for rollout in (*self._waiting, *self._active):
            self.cancel(rollout)

    def abort(self, error: Exception) -> None:
        """End every rollout with ``error``; for a failure that is no single rollout's."""
        for group in (self._waiting, self._active):
            while group:
                group.popleft().end("failed", error)

    def _admit(self) -> None:
        while self._waiting and len(self._active) < self.max_active:
            rollout = self._waiting.popleft()
            self._active.append(rollout)
            with self._alone(rollout):
                rollout.start()

    def _next_batch(self) -> list[Rollout]:
        """Rollouts whose rows share a call, the longest waiting first; they move to the back."""
        batch: list[Rollout] = []
        size, key = 0, None
        for rollout in self._active:
            rows = rollout.rows()
            if key is None:
                key = rollout.model.batch_key(rows[0])
            if rollout.model.batch_key(rows[0]) == key and size + len(rows) <= self.max_batch:
                batch.append(rollout)
                size += len(rows)
        for rollout in batch:
            self._active.remove(rollout)
            self._active.append(rollout)
        return batch

    def _evaluate(self, batch: list[Rollout]) -> list[tuple[Rollout, Tensor]]:
        """Each rollout's outputs. A batch that fails is halved, until the one at fault fails alone."""
        if not batch:
            return []
        rows = [rollout.rows() for rollout in batch]
        model = batch[0].model
        began = time.perf_counter()
        try:
            outputs = model.evaluate([row for group in rows for row in group])
        except Exception as error:
            if len(batch) == 1:
                self._fail(batch[0], error)
                return []
            logger.warning("a batch of %d rollouts failed and is halved: %s", len(batch), error)
            middle = len(batch) // 2
            return self._evaluate(batch[:middle]) + self._evaluate(batch[middle:])
        self._observer(BackboneCall(model.info.id, len(outputs), time.perf_counter() - began))
        return list(zip(batch, outputs.split([len(group) for group in rows]), strict=True))

    def _read(self, outputs: Sequence[tuple[Rollout, Tensor]]) -> list[tuple[Rollout, list[float]]]:
        """Let every rollout learn from its outputs; bring all their evidence to the host in one read."""
        pending: list[tuple[Rollout, Tensor]] = []
        for rollout, output in outputs:
            with self._alone(rollout):
                pending.append((rollout, rollout.take(output)))
        if not pending:
            return []
        values = torch.cat([evidence for _, evidence in pending]).tolist()
        sizes = [len(evidence) for _, evidence in pending]
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        return [
            (rollout, values[start : start + size])
            for (rollout, _), start, size in zip(pending, starts, sizes, strict=True)
        ]

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
        rollout.end("failed", error)
