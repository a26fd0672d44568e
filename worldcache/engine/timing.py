"""How long something takes on a device, without waiting for it."""

from __future__ import annotations

import time

import torch


class Stopwatch:
    """Times what is given to a device between :meth:`start` and :meth:`stop`.

    On CUDA the time is that of the device, and :attr:`seconds` may be read once the device has been waited
    for anyway.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._began = self._ended = 0.0
        self._events: tuple[torch.cuda.Event, torch.cuda.Event] | None = None

    def start(self) -> None:
        if self._device.type == "cuda":
            self._events = (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            self._events[0].record(torch.cuda.current_stream(self._device))
        self._began = time.perf_counter()

    def stop(self) -> None:
        if self._events is not None:
            self._events[1].record(torch.cuda.current_stream(self._device))
        self._ended = time.perf_counter()

    @property
    def seconds(self) -> float:
        if self._events is None:
            return self._ended - self._began
        return float(self._events[0].elapsed_time(self._events[1])) / 1000
