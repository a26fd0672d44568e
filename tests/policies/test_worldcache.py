"""``worldcache`` on four tokens whose every number is worked out by hand."""

import math

import pytest
import torch

from worldcache.errors import InvalidInput
from worldcache.policies import Schedule, StepInput, TokenLayout, make_policy
from worldcache.policies.replay import Replay, replay
from worldcache.policies.worldcache import PUBLISHED_PRESETS, WorldCacheConfig

# Four tokens of width one at steps 0, 1, 2, and what follows from them at step 2:
#
#     token  y2  y1  y0    v1   v0   a     kappa    class at p_s .3, p_c .6
#     A      0   1   2     1    1    0     0        stable   (Q(.3) = .9 * .25 = .225)
#     B      0   1   3     1    2    1     1/4      linear
#     C      0   2   3     2    1   -1     1        chaotic  (Q(.6) = .25 + .8 * .75 = .85)
#     D      0   1   1.5   1    .5  -.5    2        chaotic
#
# With max_skip 2, alpha(1) = 3/4 - 2/8 = .5 and alpha(2) = 1.
FIRST = [[0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 2.0, 1.0], [2.0, 3.0, 3.0, 1.5]]
AT_K1 = [2.0, 5.0, 4.5, 2.25]  # C: 3 + .5 * 1 + .5 * 2; D: 1.5 + .5 * .5 + .5 * 1
AT_K2 = [2.0, 7.0, 7.0, 3.5]  # C: 3 + 2 * 2; D: 1.5 + 2 * 1
# Drift: k = 1 adds (1 * 1.5 + 2 * .75) / 4 = .75; k = 2 adds (1 * 2.5 + 2 * 1.25) / 4 = 1.25.


def run(num_steps: int = 10, **parameters: object) -> Replay:
    """The four tokens, then 100 + step, so that a step that was computed shows."""
    rest = [[100.0 + step] * 4 for step in range(3, num_steps)]
    outputs = torch.tensor(FIRST + rest).unsqueeze(-1)
    return replay(outputs, "worldcache", **({"warmup_steps": 0, "max_skip": 2} | parameters))


def decisions(result: Replay) -> str:
    return "".join("F" if full else "." for full in result.is_full.tolist())


def test_streak_predicted_by_class_and_ended_by_max_skip():
    result = run(num_steps=7, drift_threshold=100.0)
    assert decisions(result) == "FFF..FF"
    assert result.token_class[1].tolist() == [-1] * 4
    assert result.token_class[2].tolist() == result.token_class[4].tolist() == [0, 1, 2, 2]
    torch.testing.assert_close(result.output[3].flatten(), torch.tensor(AT_K1))
    torch.testing.assert_close(result.output[4].flatten(), torch.tensor(AT_K2))
    assert result.output[5].flatten().tolist() == [105.0] * 4
    assert result.drift.tolist() == pytest.approx([0, 0, 0, 0.75, 2.0, 0, 0])


def test_the_step_that_reaches_the_threshold_is_still_cached():
    # .75 after step 3 is below .8, so step 4 is cached too; at .75 it is not.
    assert decisions(run(num_steps=6, drift_threshold=0.8)) == "FFF..F"
    assert decisions(run(num_steps=6, drift_threshold=0.7)) == "FFF.FF"


def test_a_threshold_of_zero_computes_everything():
    assert decisions(run(drift_threshold=0.0)) == "F" * 10


def test_drift_mean_over_chaotic_tokens():
    # Two tokens of four are chaotic: twice the drift.
    result = run(num_steps=6, drift_threshold=100.0, drift_mean="chaotic")
    assert result.drift.tolist() == pytest.approx([0, 0, 0, 1.5, 4.0, 0])


def test_gaps_that_differ():
    # FULL at 1, 2 and 5 (a streak of two between): one token 0 0 1 | 10. v0 = 3, v1 = 1, a = 2/3.
    # One token is at both quantiles, so chaotic: 10 + .5 * 3 + .5 * 1 = 12, then 10 + 2 * 1 = 12.
    # kappa = (2/3) / 9: step 6 moves by 2 and step 7 by 0.
    outputs = torch.tensor([0.0, 0.0, 1.0, 90.0, 91.0, 10.0, 92.0, 93.0, 94.0]).reshape(9, 1, 1)
    result = replay(outputs, "worldcache", warmup_steps=0, max_skip=2, drift_threshold=100.0)
    assert decisions(result) == "FFF..F..F"
    assert result.output[6:8].flatten().tolist() == pytest.approx([12.0, 12.0])
    assert result.drift[6:8].tolist() == pytest.approx([4 / 27, 4 / 27], rel=1e-3)


def test_warmup_and_last_step_are_full():
    assert decisions(run(num_steps=8, warmup_steps=6, drift_threshold=1e9)) == "FFFFFF.F"
    assert decisions(run(num_steps=4, drift_threshold=1e9)) == "FFFF"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_after_an_output_that_is_not_finite_no_step_is_predicted_from_it(bad: float):
    outputs = torch.sin(torch.arange(16.0)[:, None, None] * 0.1 + torch.arange(40).reshape(1, 20, 2))
    config = {"warmup_steps": 0, "max_skip": 3, "drift_threshold": 1e9}
    assert decisions(replay(outputs, **config)) == "FFF...F...F...FF"
    outputs[6, 7, 1] = bad
    # Step 6 stays in the history until three newer outputs are known: at 7, 8 and 9.
    result = replay(outputs, **config)
    assert decisions(result) == "FFF...FFFF...F.F"
    assert bool(result.output[7:].isfinite().all())


def test_evidence_comes_only_when_a_streak_may_start():
    policy = make_policy("worldcache", warmup_steps=5, max_skip=3)
    levels = tuple(1 - step / 8 for step in range(8))
    state = policy.reset(Schedule(levels, levels, TokenLayout(("rgb",), (4,))))
    lengths = []
    for step in range(8):
        lengths.append(policy.learn(state, step, torch.randn(4, 2), StepInput()).numel() - 1)
        policy.plan(state, [1.0])
    # Step 4 is followed by 5, 6 and the last step, 7, which is FULL: a streak of two at most.
    assert lengths == [0, 0, 0, 0, 2, 1, 0, 0]


def test_defaults_are_the_voyager_preset():
    assert WorldCacheConfig() == PUBLISHED_PRESETS["voyager"]
    assert PUBLISHED_PRESETS["voyager"].model_dump() == {
        "stable_quantile": 0.3,
        "chaotic_quantile": 0.6,
        "max_skip": 6,
        "drift_threshold": 1.0,
        "warmup_steps": 5,
        "drift_mean": "all",
        "eps": 1e-8,
        "predictor": "chtp",
        "trigger": "cas",
    }
    aether = PUBLISHED_PRESETS["aether"]
    assert (aether.max_skip, aether.drift_threshold, aether.warmup_steps) == (2, 0.2, 10)


@pytest.mark.parametrize("parameters", [{"stable_quantile": 0.8}, {"chaotic_quantile": 0.1}])
def test_quantiles_in_the_wrong_order_are_refused(parameters: dict[str, float]):
    with pytest.raises(InvalidInput, match="must be at least stable_quantile") as refused:
        make_policy("worldcache", **parameters)
    assert refused.value.param == "cache.chaotic_quantile"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_skip", 0),
        ("drift_threshold", -1),
        ("drift_threshold", math.inf),
        ("eps", 0),
        ("drift_mean", "some"),
    ],
)
def test_parameters_out_of_bounds_are_refused(name: str, value: object):
    with pytest.raises(InvalidInput) as refused:
        make_policy("worldcache", **{name: value})
    assert refused.value.param == f"cache.{name}"


@pytest.mark.parametrize(
    ("predictor", "group", "at_k1", "at_k2"),
    [
        ("reuse", 0, [2.0, 3.0, 3.0, 1.5], [2.0, 3.0, 3.0, 1.5]),
        # y0 + k v0.
        ("linear", 1, [3.0, 5.0, 4.0, 2.0], [4.0, 7.0, 5.0, 2.5]),
        # y0 + k (v0 + v1) / 2, then y0 + k v1.
        ("damped", 2, [3.0, 4.5, 4.5, 2.25], [4.0, 5.0, 7.0, 3.5]),
    ],
)
def test_one_predictor_for_all_tokens(predictor: str, group: int, at_k1: list[float], at_k2: list[float]):
    result = run(num_steps=7, drift_threshold=100.0, predictor=predictor)
    assert decisions(result) == "FFF..FF"
    assert result.token_class[2].tolist() == [group] * 4
    torch.testing.assert_close(result.output[3].flatten(), torch.tensor(at_k1))
    torch.testing.assert_close(result.output[4].flatten(), torch.tensor(at_k2))
    # The trigger looks at the published prediction, so the drift is as without.
    assert result.drift.tolist() == pytest.approx([0, 0, 0, 0.75, 2.0, 0, 0])


def test_random_groups_have_the_same_sizes_and_are_always_the_same():
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(6, 40, 2, generator=generator).cumsum(0)
    parameters = {"warmup_steps": 0, "drift_threshold": 1e9, "max_skip": 2}
    ours, random, again = (
        replay(outputs, "worldcache", predictor=predictor, **parameters)
        for predictor in ("chtp", "random", "random")
    )
    assert torch.equal(ours.is_full, random.is_full)
    assert torch.equal(random.output, again.output)
    assert not torch.equal(random.token_class[2], ours.token_class[2])
    assert torch.equal(random.token_class[2].sort().values, ours.token_class[2].sort().values)
    assert not torch.equal(random.output[3], ours.output[3])


@pytest.mark.parametrize(
    ("trigger", "first", "second"),
    [
        # At k = 1 the tokens move by 0, 2, 1.5, .75; at k = 2 by 0, 2, 2.5, 1.25.
        ("difference", 4.25 / 4, 5.75 / 4),
        # The mean of |y0| is 9.5 / 4.
        ("norm", 4.25 / 9.5, 5.75 / 9.5),
        # C and D have 1 and 2.
        ("curvature", 3 / 4, 3 / 4),
        ("interval", 0.0, 0.0),
    ],
)
def test_triggers(trigger: str, first: float, second: float):
    result = run(num_steps=7, drift_threshold=100.0, trigger=trigger)
    assert decisions(result) == "FFF..FF"
    assert result.drift.tolist() == pytest.approx([0, 0, 0, first, first + second, 0, 0])
    torch.testing.assert_close(result.output[3].flatten(), torch.tensor(AT_K1))
    # The first cached step of a streak needs a threshold above 0, the second one more than the first adds.
    if first:
        assert decisions(run(num_steps=7, drift_threshold=0.99 * first, trigger=trigger))[:5] == "FFF.F"


def test_curvature_over_chaotic_tokens():
    result = run(num_steps=6, drift_threshold=100.0, trigger="curvature", drift_mean="chaotic")
    assert result.drift[3:5].tolist() == pytest.approx([1.5, 3.0])
