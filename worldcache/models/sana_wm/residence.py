"""Where a module lies while nobody uses it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch


class Residence:
    """Keeps a module on its device, or on the host and on the device only while it is used.

    Safe from several threads: those that use the module at the same time take turns if it moves.

    Args:
        module: a ``torch.nn.Module``.
        device: where it is used.
        offload: whether it lies on the host in between.
    """

    def __init__(self, module: Any, device: torch.device, *, offload: bool) -> None:
        self.module = module.to("cpu" if offload else device)
        self._device, self._offload = device, offload
        self._lock: AbstractContextManager[Any] = threading.Lock() if offload else nullcontext()

    @contextmanager
    def present(self) -> Iterator[Any]:
        """The module, on the device until the block ends."""
        with self._lock:
            if self._offload:
                self.module.to(self._device)
            try:
                yield self.module
            finally:
                if self._offload:
                    self.module.to("cpu")
