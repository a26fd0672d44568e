"""``taylor`` extrapolates by finite differences between fixed FULL steps."""

import pytest
import torch

from worldcache.errors import InvalidInput
from worldcache.policies import make_policy
from worldcache.policies.replay import replay


def recorded(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32).reshape(-1, 1, 1)


def full_steps(num_steps: int, **parameters: int) -> list[int]:
    result = replay(torch.zeros(num_steps, 1, 1), "taylor", **parameters)
    steps: list[int] = result.is_full.nonzero().flatten().tolist()
    return steps


def test_schedule_of_the_defaults():
    # Warmup 0 1 2; then (s - 4) mod 5 = 0: step 3 is cached already, 4, 9, 14, 19 are FULL.
    assert full_steps(22) == [0, 1, 2, 4, 9, 14, 19]


def test_schedule_without_warmup_still_starts_full():
    # (s - 1) mod 3 = 0: 1, 4, 7; step 0 has no past to predict from.
    assert full_steps(9, warmup_steps=0, interval=3) == [0, 1, 4, 7]


def test_an_interval_of_one_computes_everything():
    assert full_steps(6, interval=1) == [0, 1, 2, 3, 4, 5]


def test_order_one():
    # FULL at 0 1 | 3 | 6: 90 and up stand where the recording must not be read.
    result = replay(recorded(1, 3, 90, 9, 91, 92, 12, 93), "taylor", warmup_steps=2, interval=3, order=1)
    assert result.is_full.tolist() == [True, True, False, True, False, False, True, False]
    # Step 2: 3 + 2 * 1 = 5. Steps 4, 5: slope (9 - 3) / 2 = 3: 12, 15. Step 7: slope 1: 13.
    assert result.output.flatten().tolist() == [1, 3, 5, 9, 12, 15, 12, 13]


def test_order_two():
    result = replay(recorded(1, 3, 90, 9, 91, 92, 12, 93), "taylor", warmup_steps=2, interval=3, order=2)
    # Step 2: two outputs known, order one: 5.
    # Step 3: D1 = 3, D2 = (3 - 2) / 2 = .5; step 4: 9 + 3 + .25; step 5: 9 + 6 + .5 * 4 / 2.
    # Step 6: D1 = 1, D2 = (1 - 3) / 3 = -2/3; step 7: 12 + 1 - 1/3.
    expected = torch.tensor([1, 3, 5, 9, 12.25, 16, 12, 12 + 2 / 3])
    torch.testing.assert_close(result.output.flatten(), expected)


def test_order_three_continues_a_cubic():
    # With equal gaps D3 is exact, but D1 and D2 are backward: at s^3 from 0 1 2 3 they are
    # D1 = 27 - 8 = 19, D2 = 27 - 2 * 8 + 1 = 12, D3 = 6. Step 4: 27 + 19 + 12 / 2 + 6 / 6 = 53.
    result = replay(recorded(0, 1, 8, 27, 90), "taylor", warmup_steps=4, interval=5, order=3)
    assert result.is_full.tolist() == [True] * 4 + [False]
    assert result.output[4].item() == 53.0


def test_one_output_known_is_repeated():
    result = replay(recorded(4, 90, 91), "taylor", warmup_steps=1, interval=3, order=3)
    assert result.is_full.tolist() == [True, False, True]
    assert result.output.flatten().tolist() == [4, 4, 91]


@pytest.mark.parametrize(
    ("name", "value"), [("order", 0), ("order", 4), ("interval", 0), ("warmup_steps", -1)]
)
def test_parameters_out_of_bounds_are_refused(name: str, value: int):
    with pytest.raises(InvalidInput) as refused:
        make_policy("taylor", **{name: value})
    assert refused.value.param == f"cache.{name}"
