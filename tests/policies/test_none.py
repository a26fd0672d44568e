"""``none`` computes every step."""

import pytest
import torch

from worldcache.policies import Schedule, StepInput, TokenLayout, make_policy
from worldcache.policies.replay import replay


def test_every_step_is_computed():
    outputs = torch.arange(4.0).reshape(4, 1, 1)
    result = replay(outputs, "none")
    assert result.is_full.tolist() == [True] * 4
    assert result.output.flatten().tolist() == [0.0, 1.0, 2.0, 3.0]
    assert result.skip_ratio == 0.0
    assert bool(result.drift.isnan().all())
    assert result.token_class.unique().tolist() == [-1]


def test_predicting_is_a_bug():
    policy = make_policy("none")
    state = policy.reset(Schedule((1.0,), (0.0,), TokenLayout(("rgb",), (1,))))
    with pytest.raises(AssertionError, match="never asked to predict"):
        policy.predict(state, 0, StepInput())
