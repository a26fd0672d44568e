"""The calibrations against numbers worked out by hand."""

import math

import pytest
import torch

from worldcache.policies.calibration import magnitude_ratios, relative_changes, teacache_coefficients


def test_magnitude_ratios_are_means_over_tokens():
    # Norms 5, 1 -> 10, 3 -> 5, 3: ratios 2 and 3, then 1/2 and 1.
    outputs = torch.tensor([[[3.0, 4], [1, 0]], [[6, 8], [0, 3]], [[5, 0], [3, 0]]])
    assert magnitude_ratios(outputs) == pytest.approx([1.0, 2.5, 0.75])


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf])
def test_a_ratio_that_is_not_finite_counts_as_one(bad: float):
    outputs = torch.tensor([1.0, bad, 3.0, 6.0]).reshape(-1, 1, 1)
    ratios = magnitude_ratios(outputs)
    assert ratios[2] == 1.0 or bad == math.inf
    assert ratios[3] == 2.0
    assert all(map(math.isfinite, ratios))


def test_relative_changes():
    # |1| + |1| over 1 + 3, then |0| + |6| over 2 + 4.
    values = torch.tensor([[1.0, -3.0], [2.0, -4.0], [2.0, 2.0]])
    assert relative_changes(values) == pytest.approx([0.5, 1.0])


def test_the_fit_finds_a_polynomial_again():
    inputs = [0.1, 0.2, 0.3, 0.5, 0.8, 1.0]
    outputs = [2 * x**2 - 0.5 * x + 0.25 for x in inputs]
    assert teacache_coefficients(inputs, outputs) == pytest.approx([0, 0, 2, -0.5, 0.25], abs=1e-9)
    assert teacache_coefficients(inputs, outputs, degree=2) == pytest.approx([2, -0.5, 0.25])


def test_the_degree_falls_with_the_number_of_points():
    assert teacache_coefficients([0.5, 1.0], [1.0, 2.0]) == pytest.approx([2.0, 0.0])
    assert teacache_coefficients([0.5, 0.5], [1.0, 2.0]) == pytest.approx([1.5])
    assert teacache_coefficients([], []) == [0.0]


def test_points_that_are_not_finite_are_left_out():
    assert teacache_coefficients([0.5, math.nan, 1.0], [1.0, 9.0, 2.0]) == pytest.approx([2.0, 0.0])
    assert teacache_coefficients([0.5, 0.7, 1.0], [1.0, math.inf, 2.0]) == pytest.approx([2.0, 0.0])
