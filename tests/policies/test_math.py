"""The policy arithmetic against numbers worked out by hand in the comments."""

import math

import pytest
import torch

from worldcache.policies.math import (
    add_scaled,
    class_masks,
    combination_weights,
    curvature,
    damping,
    drift_increments,
    finite_differences,
    quantile_classes,
    taylor_weights,
    turns,
)


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values).unsqueeze(-1)


def test_finite_differences_grow_with_the_past_and_divide_by_the_newest_gap():
    # One token computed at steps 1, 2 and 5: 0, 1, 10.
    first = finite_differences(column(0.0), (), gap=1, order=2)
    second = finite_differences(column(1.0), first, gap=1, order=2)
    third = finite_differences(column(10.0), second, gap=3, order=2)
    assert [len(first), len(second), len(third)] == [1, 2, 3]
    # v0 = (10 - 1) / 3 = 3, v1 = (1 - 0) / 1 = 1, a = (3 - 1) / 3.
    torch.testing.assert_close(torch.cat(third).flatten(), torch.tensor([10.0, 3.0, 2 / 3]))


def test_finite_differences_stop_at_the_order():
    past = finite_differences(column(1.0), (), gap=1, order=1)
    past = finite_differences(column(2.0), past, gap=1, order=1)
    assert len(finite_differences(column(4.0), past, gap=1, order=1)) == 2


def test_taylor_weights():
    # 10 + 3 * 2 + 0.5 * 2^2 / 2 + 6 * 2^3 / 6 = 10 + 6 + 1 + 8.
    differences = [column(10.0), column(3.0), column(0.5), column(6.0)]
    assert add_scaled(column(0.0), differences, taylor_weights(4, k=2)).item() == 25.0


def test_terms_are_added_in_place():
    total, term = column(4.0), column(6.0)
    assert add_scaled(total, [term, term], (0.5, 1.0)) is total
    assert (total.item(), term.item()) == (13.0, 6.0)


def test_curvature():
    # |a| = 5 and |v0|^2 = 4: 5 / 4. At rest only eps is left: 1 / 0.5.
    result = curvature(torch.tensor([2.0, 0.0]), torch.tensor([5.0, 1.0]), eps=0.5)
    torch.testing.assert_close(result, torch.tensor([5 / 4.5, 2.0]))


def test_quantile_classes():
    # Q(.3): rank .9 gives .9 * .25 = .225. Q(.6): rank 1.8 gives .25 + .8 * .75 = .85.
    values = torch.tensor([2.0, 0.25, 1.0, 0.0])
    classes = quantile_classes(values, torch.tensor([0.3, 0.6]))
    assert classes.dtype == torch.int8
    assert classes.tolist() == [2, 1, 2, 0]


def test_a_token_at_the_quantile_is_chaotic_and_not_stable():
    # Q(.5) of 0, 1, 2 is 1: the token with 1 is not below it.
    assert quantile_classes(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0.5, 0.5])).tolist() == [0, 2, 2]


def test_quantile_ranks_are_float32():
    # .6 * 95 is 57 in float64, but a little more in float32: the quantile lies just above token 57,
    # which is then not chaotic. Tokens 58 ... 95 are: 38 of them.
    assert int((quantile_classes(torch.arange(96.0), torch.tensor([0.3, 0.6])) == 2).sum()) == 38


def test_nan_leaves_every_token_linear():
    assert quantile_classes(torch.tensor([0.0, math.nan, 2.0]), torch.tensor([0.3, 0.6])).tolist() == [
        1,
        1,
        1,
    ]


def test_damping():
    # 3 / 4 - 2 / 8, and 3 / 9 - 2 / 27.
    assert [damping(x) for x in (0.0, 0.5, 1.0)] == [0.0, 0.5, 1.0]
    assert damping(1 / 3) == pytest.approx(1 / 3 - 2 / 27)


@pytest.mark.parametrize(("k", "expected"), [(1, [10.0, 13.0, 12.0]), (2, [10.0, 16.0, 12.0])])
def test_combination_weights_give_the_published_prediction(k: int, expected: list[float]):
    # y0 = 10, v0 = 3, v1 = 1, h0 = 3, a = 2/3, max_skip = 2, so alpha(1) = .5 and alpha(2) = 1.
    # Stable 10; linear 10 + 3k; chaotic 10 + 1 (.5 * 3 + .5 * 1) = 12 and 10 + 2 (0 * 3 + 1 * 1) = 12.
    moving, damped = class_masks(torch.tensor([0, 1, 2], dtype=torch.int8))
    assert moving.shape == damped.shape == (3, 1)
    p, q = combination_weights(k, max_skip=2, gap=3)
    predicted = 10 + p * moving * 3 + q * damped * (2 / 3)
    torch.testing.assert_close(predicted.flatten(), torch.tensor(expected))


def test_drift_increments():
    # Two chaotic tokens with h0 = 1, max_skip = 2: C has v0 = 1, v1 = 2, a = -1, and moves by
    # .5 * 1 + .5 * 2 = 1.5, then from 1.5 to 2 * 2 = 4: 2.5. D has v0 = v1 = 2, and moves 2 each time.
    # Weighted 1 and 1/4: 1.5 + .5 = 2 and 2.5 + .5 = 3. The third token's weight is 0.
    result = drift_increments(
        torch.tensor([1.0, 0.25, 0.0]),
        velocity_norm=torch.tensor([1.0, 2.0, 9.0]),
        acceleration_norm=torch.tensor([1.0, 0.0, 9.0]),
        inner=torch.tensor([-1.0, 0.0, 3.0]),
        turn=torch.tensor(turns(max_skip=2, count=2)),
    )
    torch.testing.assert_close(result, torch.tensor([2.0, 3.0]))


def test_drift_increments_equal_the_lengths_of_the_predicted_moves():
    torch.manual_seed(0)
    velocity, acceleration = torch.randn(2, 40, 8, dtype=torch.float64)
    weight, max_skip, gap = torch.rand(40, dtype=torch.float64), 5, 3
    older = velocity - gap * acceleration

    def moved(k: int) -> torch.Tensor:
        alpha = damping(min(k / max_skip, 1.0))
        return k * ((1 - alpha) * velocity + alpha * older)

    expected = [(weight * (moved(k) - moved(k - 1)).norm(dim=-1)).sum() for k in range(1, 8)]
    result = drift_increments(
        weight,
        velocity.norm(dim=-1),
        acceleration.norm(dim=-1),
        (velocity * acceleration).sum(-1),
        gap * torch.tensor(turns(max_skip, count=7), dtype=torch.float64),
    )
    torch.testing.assert_close(result, torch.stack(expected))


def test_a_nan_weight_reaches_every_increment():
    ones = torch.ones(2)
    result = drift_increments(torch.tensor([0.0, math.nan]), ones, ones, ones, torch.ones(3))
    assert bool(result.isnan().all())
