"""The engine's own thread: with the one that decodes, the only place where torch runs in the service."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

import torch

from worldcache.engine.decode import DecodeThread
from worldcache.engine.engine import Engine
from worldcache.engine.parallel import quicker_num_threads, settle_num_threads
from worldcache.engine.rollout import Listener, Rollout, RolloutRequest
from worldcache.errors import WorldCacheError
from worldcache.models.base import WorldModel

logger = logging.getLogger(__name__)

STALL_SECONDS = 0.005
"""How often it is looked whether frames have been decoded that every rollout waits for."""

ResultT = TypeVar("ResultT")


class EngineThread:
    """Drives an :class:`Engine` from one thread; every method may be called from any other.

    Args:
        engine: not to be touched by anyone else from now on.
        decoder: the thread that the engine hands finished chunks to, started and closed with this one.
        name: of the thread.
    """

    def __init__(self, engine: Engine, decoder: DecodeThread | None = None, name: str = "engine") -> None:
        self._engine, self._decoder = engine, decoder
        self._num_threads, self._settled = torch.get_num_threads(), threading.Event()
        self._inbox: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._closed, self._lock = False, threading.Lock()

    def start(self) -> None:
        if self._decoder is not None:
            self._decoder.start()
        self._thread.start()
        self._settled.wait()

    def submit(self, model: WorldModel, request: RolloutRequest, listener: Listener) -> Rollout:
        """Queue a rollout. ``listener`` hears of it on the engine's thread.

        Returns:
            A handle for :meth:`cancel`; its contents belong to the engine.
        """
        rollout = Rollout(model, request, listener)
        self.call(lambda: self._engine.submit(rollout))
        return rollout

    def cancel(self, rollout: Rollout) -> Future[bool]:
        """Drop a rollout after the backbone call in flight; False if it had already ended."""
        return self.call(lambda: self._engine.cancel(rollout))

    def call(self, function: Callable[[], ResultT]) -> Future[ResultT]:
        """Run ``function`` on the engine's thread between two ticks (loading and warming models too).

        Raises:
            WorldCacheError: the thread has been closed, or has died.
        """
        future: Future[ResultT] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function())
            except Exception as error:
                future.set_exception(error)

        with self._lock:  # whatever is put here is read: nothing comes behind the end
            if self._closed or (self._thread.ident is not None and not self._thread.is_alive()):
                raise WorldCacheError("the engine has been closed; start a new one")
            self._inbox.put(run)
        return future

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and (self._decoder is None or self._decoder.alive)

    def close(self, timeout: float | None = None) -> None:
        """Stop after the backbone call in flight; rollouts that still run end as cancelled."""
        with self._lock:
            self._closed = True
            self._inbox.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _run(self) -> None:
        try:
            settle_num_threads(self._num_threads)
            self._engine.host_threads = quicker_num_threads(self._num_threads)
            logger.info("the host computes with %d threads between calls", self._engine.host_threads)
        finally:
            self._settled.set()
        try:
            self._drive()
            self._engine.cancel_all()
        except BaseException:
            self._engine.abort(WorldCacheError("the engine has stopped; the server has to be started again"))
            raise
        finally:
            if self._decoder is not None:
                self._decoder.close()

    def _drive(self) -> None:
        while self._serve_inbox():
            try:
                self._engine.tick()
            except Exception as error:
                logger.exception("the engine's tick failed; every rollout ends, the engine goes on")
                self._engine.abort(error)

    def _serve_inbox(self) -> bool:
        """Run what others asked for, waiting for it while there is nothing to compute; False to stop."""
        while True:
            try:
                stalled = self._engine.stalled
                message = self._inbox.get(self._engine.idle or stalled, STALL_SECONDS if stalled else None)
            except queue.Empty:
                return True
            if message is None:
                return False
            message()
            del message  # what it refers to must not outlive it here
