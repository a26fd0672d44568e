"""``interval`` computes every n-th step and repeats it."""

import pytest
import torch

from worldcache.errors import InvalidInput
from worldcache.policies import make_policy
from worldcache.policies.replay import replay

# Every recorded output is its step's number, so that a repeated one shows.
OUTPUTS = torch.arange(8.0).reshape(8, 1, 1)


def test_every_third_step_is_computed_and_repeated():
    result = replay(OUTPUTS, "interval", interval=3)
    assert result.is_full.nonzero().flatten().tolist() == [0, 3, 6]
    assert result.output.flatten().tolist() == [0, 0, 0, 3, 3, 3, 6, 6]
    assert result.skip_ratio == pytest.approx(5 / 8)


def test_the_default_is_five_and_the_last_step_has_no_privilege():
    assert replay(OUTPUTS, "interval").is_full.nonzero().flatten().tolist() == [0, 5]


def test_an_interval_of_one_computes_everything():
    assert replay(OUTPUTS, "interval", interval=1).skip_ratio == 0.0


def test_an_interval_of_zero_is_refused():
    with pytest.raises(InvalidInput) as refused:
        make_policy("interval", interval=0)
    assert refused.value.param == "cache.interval"
