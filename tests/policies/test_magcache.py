"""``magcache`` skips by calibrated magnitude ratios."""

import pytest
import torch

from worldcache.errors import InvalidInput
from worldcache.policies import Schedule, TokenLayout, make_policy
from worldcache.policies.magcache import nearest
from worldcache.policies.replay import Replay, replay

OUTPUTS = torch.arange(1.0, 11.0).reshape(10, 1, 1)


def run(ratios: list[float], **parameters: object) -> Replay:
    return replay(OUTPUTS, "magcache", ratios=ratios, **parameters)


def decisions(result: Replay) -> str:
    return "".join("F" if full else "." for full in result.is_full.tolist())


def test_errors_of_the_running_product_accumulate():
    # Each ratio is 1/2. After a FULL step rho is 1/2 and err 1/2, then rho 1/4 and err 5/4,
    # then rho 1/8 and err 17/8: above 2, so every third step after 0 is FULL.
    result = run([0.5] * 10, threshold=2.0, max_skip=9, retention=0.0)
    assert decisions(result) == "F..F..F..F"
    assert result.output.flatten().tolist() == [1, 1, 1, 4, 4, 4, 7, 7, 7, 10]


def test_an_error_of_the_threshold_itself_is_still_cached():
    assert decisions(run([0.5] * 10, threshold=1.25, max_skip=9, retention=0.0)) == "F..F..F..F"
    assert decisions(run([0.5] * 10, threshold=1.2, max_skip=9, retention=0.0)) == "F.F.F.F.F."


def test_streaks_end_after_max_skip():
    assert decisions(run([1.0] * 10, max_skip=2, retention=0.0)) == "F..F..F..F"
    assert decisions(run([1.0] * 10, max_skip=4, retention=0.0)) == "F....F...."


def test_the_first_fifth_is_retained():
    assert decisions(run([1.0] * 10)) == "FF..F..F.."
    # int(10 * .39) = 3.
    assert decisions(run([1.0] * 10, retention=0.39)) == "FFF..F..F."


def test_a_ratio_belongs_to_its_step():
    # The output leaps at step 4 alone.
    ratios = [1.0] * 4 + [2.0] + [1.0] * 5
    assert decisions(run(ratios, max_skip=9, retention=0.0)) == "F...F....."


def test_ratios_of_another_schedule_are_read_at_the_nearest_step():
    # scale 3 / 6: positions 0 .5 1 1.5 2 2.5 3, halves to even as numpy rounds.
    assert nearest([10.0, 11.0, 12.0, 13.0], 7) == [10, 10, 11, 12, 12, 12, 13]
    # scale 4 / 2.
    assert nearest([10.0, 11.0, 12.0, 13.0, 14.0], 3) == [10, 12, 14]
    assert nearest([10.0, 11.0], 1) == [11]
    assert nearest([10.0, 11.0], 2) == [10, 11]


def test_a_recording_calibrates_itself():
    # The output doubles at each step but stands still at 1 and 2: the leap to step 3 is noticed.
    outputs = torch.tensor([1.0, 1, 1, 2, 4, 8]).reshape(-1, 1, 1)
    assert decisions(replay(outputs, "magcache", max_skip=9, retention=0.0)) == "F..FFF"


def test_without_a_calibration_no_chunk_begins():
    with pytest.raises(InvalidInput) as refused:
        make_policy("magcache").reset(Schedule((1.0,), (0.0,), TokenLayout(("rgb",), (1,))))
    assert (refused.value.param, refused.value.code) == ("cache.ratios", "policy_not_calibrated")


@pytest.mark.parametrize(
    ("name", "value"), [("max_skip", 0), ("retention", 1.1), ("threshold", -1), ("ratios", [])]
)
def test_parameters_out_of_bounds_are_refused(name: str, value: object):
    with pytest.raises(InvalidInput) as refused:
        make_policy("magcache", **{name: value})
    assert refused.value.param == f"cache.{name}"
