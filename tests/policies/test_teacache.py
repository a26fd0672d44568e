"""``teacache`` decides by the change of the timestep-modulated input, and reuses the output."""

import pytest
import torch

from worldcache.errors import InvalidInput
from worldcache.policies import Schedule, TokenLayout, make_policy
from worldcache.policies.replay import Replay, replay


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32).reshape(-1, 1, 1)


# The modulated input changes by 1/4 from step to step, then by 1/2.
MODULATED = column(64, 80, 100, 125, 187.5, 281.25)
OUTPUTS = column(1, 2, 3, 4, 5, 6)


def run(**parameters: object) -> Replay:
    return replay(OUTPUTS, "teacache", modulated=MODULATED, **parameters)


def decisions(result: Replay) -> str:
    return "".join("F" if full else "." for full in result.is_full.tolist())


def test_changes_accumulate_through_the_polynomial():
    # poly(x) = 2 x - 1/4: a quarter gives 1/4, a half 3/4. Sums: 1/4, 1/2, 3/4 is reached at step 3;
    # then step 4 alone adds 3/4, and step 5 is the last.
    result = run(threshold=0.75, coefficients=[2.0, -0.25])
    assert decisions(result) == "F..FFF"
    assert result.output.flatten().tolist() == [1, 1, 1, 4, 5, 6]
    assert result.drift.tolist() == pytest.approx([0, 0.25, 0.5, 0, 0, 0])


def test_the_highest_power_comes_first():
    # x^2 + 1/16: a quarter gives 1/8, a half 5/16. 1/8, 1/4, 3/8 stay below 1/2; step 4 reaches 11/16.
    result = run(threshold=0.5, coefficients=[1.0, 0.0, 0.0625])
    assert decisions(result) == "F...FF"


def test_first_and_last_step_are_full():
    assert decisions(run(threshold=1e9, coefficients=[0.0])) == "F....F"
    assert decisions(run(threshold=1e9, coefficients=[0.0], warmup_steps=3)) == "FFF..F"


def test_a_threshold_of_zero_computes_everything():
    assert decisions(run(threshold=0.0, coefficients=[1.0, 0.0])) == "FFFFFF"


def test_a_recording_calibrates_itself():
    # The output changes exactly twice as much as the modulated input: 1/8 in, 1/4 out.
    outputs = column(*(64 * 1.25**step for step in range(8)))
    modulated = column(*(64 * 1.125**step for step in range(8)))
    result = replay(outputs, "teacache", modulated=modulated, threshold=0.6)
    assert decisions(result) == "F..F..FF"


def test_latents_stand_in_for_a_modulated_input_and_one_of_them_is_needed():
    by_latents = replay(OUTPUTS, "teacache", latents=MODULATED, threshold=0.75, coefficients=[2.0, -0.25])
    assert decisions(by_latents) == "F..FFF"
    with pytest.raises(InvalidInput) as refused:
        replay(OUTPUTS, "teacache", coefficients=[1.0, 0.0])
    assert refused.value.param == "latents"
    with pytest.raises(InvalidInput) as refused:
        replay(OUTPUTS, "teacache", modulated=MODULATED[1:])
    assert refused.value.param == "modulated"


def test_without_a_calibration_no_chunk_begins():
    with pytest.raises(InvalidInput, match="calibrate the model") as refused:
        make_policy("teacache").reset(Schedule((1.0,), (0.0,), TokenLayout(("rgb",), (1,))))
    assert (refused.value.param, refused.value.code) == ("cache.coefficients", "policy_not_calibrated")
