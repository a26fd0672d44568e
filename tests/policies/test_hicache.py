"""``hicache`` extrapolates by Hermite polynomials on the schedule of ``taylor``."""

import pytest
import torch

from worldcache.errors import InvalidInput
from worldcache.policies import make_policy
from worldcache.policies.math import add_scaled, hermite_weights
from worldcache.policies.replay import replay


def recorded(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32).reshape(-1, 1, 1)


def test_schedule_of_the_defaults():
    # Warmup 0 1 2, then (s - 4) mod 7 = 0.
    result = replay(torch.zeros(20, 1, 1), "hicache")
    assert result.is_full.nonzero().flatten().tolist() == [0, 1, 2, 4, 11, 18]


def test_hermite_weights():
    # sigma .5, k 4: x = 2; H1 = 4, H2 = 14, H3 = 40.
    # 10 + 3 * .5 * 4 + .5 / 2 * .25 * 14 + 6 / 6 * .125 * 40 = 10 + 6 + .875 + 5.
    differences = [torch.tensor([[value]]) for value in (10.0, 3.0, 0.5, 6.0)]
    assert (
        add_scaled(torch.zeros(1, 1), differences, hermite_weights(len(differences), k=4, sigma=0.5)).item()
        == 21.875
    )


def test_order_two():
    # FULL at 0 1 | 3 | 6: 90 and up stand where the recording must not be read.
    result = replay(recorded(1, 3, 90, 9, 91, 92, 12, 93), "hicache", warmup_steps=2, interval=3)
    assert result.is_full.tolist() == [True, True, False, True, False, False, True, False]
    # Step 2: D1 = 2, x = .5: 3 + 2 * .5 * 1 = 4.
    # Step 3: D1 = (9 - 3) / 2 = 3, D2 = (3 - 2) / 2 = .5.
    # Step 4: x = .5, H = 1, -1: 9 + 3 * .5 * 1 + .25 * .25 * -1 = 10.4375.
    # Step 5: x = 1, H = 2, 2: 9 + 3 * .5 * 2 + .25 * .25 * 2 = 12.125.
    # Step 6: D1 = 1, D2 = (1 - 3) / 3 = -2/3; step 7: 12 + .5 + 1/3 * .25.
    expected = torch.tensor([1, 3, 4, 9, 10.4375, 12.125, 12, 12.5 + 1 / 12])
    torch.testing.assert_close(result.output.flatten(), expected)


def test_sigma_one_is_the_plain_polynomial():
    # Step 2: 3 + 2 * 1 * H1(1) = 3 + 2 * 2.
    result = replay(recorded(1, 3, 90), "hicache", warmup_steps=2, sigma=1.0)
    assert result.output.flatten().tolist() == [1, 3, 7]


@pytest.mark.parametrize(("name", "value"), [("order", 4), ("interval", 0), ("sigma", 0), ("sigma", 1.5)])
def test_parameters_out_of_bounds_are_refused(name: str, value: float):
    with pytest.raises(InvalidInput) as refused:
        make_policy("hicache", **{name: value})
    assert refused.value.param == f"cache.{name}"
