"""CUDA graphs for a function of batches: one graph for each of a few batch sizes.

Knows no model: only that a function takes tensors with one row an entry, and returns one. A batch is
filled up to the next size by repeating its last row, whose output is then dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

BatchFunction: TypeAlias = Callable[..., Tensor]
"""Tensors with the same number of rows in, one with as many rows out."""

Capture: TypeAlias = Callable[[BatchFunction, tuple[Tensor, ...]], Callable[[], Tensor]]
"""Makes of a function and its input buffers a call that reads the buffers and refills one output."""

WARM_CALLS = 3
"""Calls before a capture: libraries choose and allocate during the first ones."""


def batch_sizes(largest: int) -> tuple[int, ...]:
    """The powers of two below ``largest``, and ``largest``: ``(1, 2, 4, 8, 12)`` for 12."""
    sizes = [1]
    while 2 * sizes[-1] < largest:
        sizes.append(2 * sizes[-1])
    return tuple(sizes) if largest == 1 else (*sizes, largest)


@dataclass(frozen=True)
class _Captured:
    """One graph: the buffers that it reads, and the call that runs it."""

    inputs: tuple[Tensor, ...]
    replay: Callable[[], Tensor]


class BatchGraphs:
    """Calls a function through captured graphs.

    Graphs are captured at the first call of each size, and kept for each set of row shapes: there should
    be few. They share their buffers with every caller, so calls come from one thread and one stream, one
    after the other. A batch of more rows than the largest size is computed without a graph.

    Args:
        function: what to call; it must do the same work at every call and read nothing back.
        sizes: batch sizes, ascending.
        capture: makes the graphs; those of CUDA if left out.
    """

    def __init__(self, function: BatchFunction, sizes: Sequence[int], capture: Capture | None = None) -> None:
        self._function, self.sizes = function, tuple(sizes)
        self._capture = capture or CudaCapture()
        self._graphs: dict[Hashable, _Captured] = {}

    @torch.inference_mode()
    def __call__(self, *inputs: Tensor) -> Tensor:
        rows = len(inputs[0])
        size = next((size for size in self.sizes if size >= rows), None)
        if size is None:
            return self._function(*inputs)
        key = (size, tuple((tensor.shape[1:], tensor.dtype) for tensor in inputs))
        captured = self._graphs.get(key)
        if captured is None:
            buffers = tuple(tensor.new_empty((size, *tensor.shape[1:])) for tensor in inputs)
            _fill(buffers, inputs)
            captured = _Captured(buffers, self._capture(self._function, buffers))
            self._graphs[key] = captured
        _fill(captured.inputs, inputs)
        return captured.replay()[:rows].clone()


class CudaCapture:
    """Captures CUDA graphs that take their memory from one pool, as they never run at the same time."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, function: BatchFunction, inputs: tuple[Tensor, ...]) -> Callable[[], Tensor]:
        device = inputs[0].device
        with torch.cuda.device(device):
            current, stream = torch.cuda.current_stream(device), torch.cuda.Stream(device)
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                for _ in range(WARM_CALLS):
                    function(*inputs)
            current.wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            # Other threads serve other devices meanwhile, so only this one is held to a capture's rules.
            with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
                output = function(*inputs)
            self._pool = graph.pool()

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay


def _fill(buffers: Sequence[Tensor], inputs: Sequence[Tensor]) -> None:
    for buffer, tensor in zip(buffers, inputs, strict=True):
        rows = len(tensor)
        buffer[:rows].copy_(tensor)
        if rows < len(buffer):
            buffer[rows:].copy_(tensor[-1:].expand_as(buffer[rows:]))
