"""Batches of fixed sizes, with a capture that works anywhere: it calls the function on its buffers again."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from worldcache.models.graphs import BatchFunction, BatchGraphs, batch_sizes


class Recorder:
    """Stands in for CUDA: one output buffer a graph, refilled at every replay."""

    def __init__(self) -> None:
        self.captured: list[int] = []
        self.replayed: list[Tensor] = []

    def __call__(self, function: BatchFunction, inputs: tuple[Tensor, ...]) -> Callable[[], Tensor]:
        self.captured.append(len(inputs[0]))
        output = function(*inputs)

        def replay() -> Tensor:
            self.replayed.append(inputs[0].clone())
            return output.copy_(function(*inputs))

        return replay


def double_and_add(x: Tensor, y: Tensor) -> Tensor:
    return 2 * x + y[:, None]


@pytest.mark.parametrize(
    ("largest", "sizes"), [(1, (1,)), (2, (1, 2)), (3, (1, 2, 3)), (8, (1, 2, 4, 8)), (12, (1, 2, 4, 8, 12))]
)
def test_sizes_are_powers_of_two_and_the_largest(largest: int, sizes: tuple[int, ...]) -> None:
    assert batch_sizes(largest) == sizes


def test_a_batch_is_filled_with_its_last_row_and_cut_again() -> None:
    recorder = Recorder()
    graphs = BatchGraphs(double_and_add, (1, 2, 4), recorder)
    x, y = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([10, 20, 30])
    assert graphs(x, y).tolist() == [[12.0], [24.0], [36.0]]
    assert recorder.replayed[-1].tolist() == [[1.0], [2.0], [3.0], [3.0]]


def test_every_size_is_captured_once_and_reads_new_values() -> None:
    recorder = Recorder()
    graphs = BatchGraphs(double_and_add, (1, 2, 4), recorder)
    for rows in (3, 4, 1, 2, 3, 1):
        x = torch.randn(rows, 5)
        y = torch.arange(rows)
        assert torch.equal(graphs(x, y), double_and_add(x, y))
    assert recorder.captured == [4, 1, 2]


def test_an_answer_is_not_overwritten_by_the_next_call() -> None:
    graphs = BatchGraphs(double_and_add, (2,), Recorder())
    first = graphs(torch.ones(2, 1), torch.zeros(2))
    graphs(torch.zeros(2, 1), torch.zeros(2))
    assert first.tolist() == [[2.0], [2.0]]


def test_other_shapes_and_larger_batches() -> None:
    recorder = Recorder()
    graphs = BatchGraphs(double_and_add, (1, 2), recorder)
    for width in (3, 4):
        x = torch.randn(2, width)
        assert torch.equal(graphs(x, torch.ones(2)), 2 * x + 1)
    assert recorder.captured == [2, 2]
    x = torch.randn(3, 3)
    assert torch.equal(graphs(x, torch.ones(3)), 2 * x + 1)
    assert recorder.captured == [2, 2]
