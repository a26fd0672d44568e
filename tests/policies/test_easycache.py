"""``easycache`` decides by how far the latent has moved, and reuses the output's offset from it."""

import pytest
import torch

from worldcache.errors import InvalidInput
from worldcache.policies import Schedule, StepInput, TokenLayout, make_policy
from worldcache.policies.replay import Replay, replay

# One token. The latent falls by 1 a step; the output is 10, 10.5 where it is computed first, and 90
# and up stand where the recording must not be read.
LATENTS = [8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0]


def column(values: list[float]) -> torch.Tensor:
    return torch.tensor(values).reshape(-1, 1, 1)


def run(outputs: list[float], latents: list[float] = LATENTS, **parameters: float) -> Replay:
    latents = latents[: len(outputs)]
    parameters = {"warmup_steps": 2} | parameters
    return replay(column(outputs), "easycache", latents=column(latents), **parameters)


def decisions(result: Replay) -> str:
    return "".join("F" if full else "." for full in result.is_full.tolist())


def test_offset_is_reused_until_the_threshold():
    # khat = .5 / 1 and |y0| = 10: each step adds .05 * 1. After steps 2 and 3 the sum is .05 and .1:
    # at .12 both are cached, and step 4 reaches .15.
    result = run([9.5, 10.0, 90.0, 91.0, 12.0, 93.0, 14.0], threshold=0.12)
    assert decisions(result) == "FF..F.F"
    # y0 - x_t0 = 10 - 7: 6 + 3 and 5 + 3. Step 5: khat = 2 / 3, |y0| = 12, so step 5 adds 1 / 18
    # and returns 3 + (12 - 4). Step 6 is the last.
    assert result.output.flatten().tolist() == [9.5, 10, 9, 8, 12, 11, 14]
    torch.testing.assert_close(
        result.drift, torch.tensor([0, 0, 0.05, 0.1, 0, 1 / 18, 0]).double(), rtol=1e-5, atol=1e-7
    )


def test_the_step_that_reaches_the_threshold_is_full():
    # The sums are 1/16, 2/16, 3/16: exact in binary.
    outputs = [7.5, 8.0, 90.0, 91.0, 12.0, 13.0]
    assert decisions(run(outputs, threshold=0.125)) == "FF.FFF"
    assert decisions(run(outputs, threshold=0.126)) == "FF..FF"


def test_without_two_outputs_there_is_no_rate():
    assert decisions(run([10.0, 10.0, 90.0, 10.0], warmup_steps=0)) == "FF.F"
    assert decisions(run([10.0, 10.0, 90.0, 10.0], warmup_steps=1)) == "FF.F"


def test_an_output_that_follows_the_latent_is_predicted_exactly():
    # Output = latent + 1; changes of 1 in 10 and less.
    latents = [20.0 - step for step in range(7)]
    result = run([latent + 1 for latent in latents], latents, threshold=10.0)
    assert decisions(result) == "FF....F"
    assert result.output.flatten().tolist() == [latent + 1 for latent in latents]


def test_a_latent_that_stands_still_gives_no_rate_and_falls_back():
    # khat = 0 / 0 after every output but the first.
    result = run([1.0] * 4, [2.0] * 4)
    assert decisions(result) == "FFFF"
    assert result.fallbacks == 3


def test_the_conditional_branch_decides_for_both():
    # Two branches of one token: the second one's outputs leap, the first one's stand still.
    layout = TokenLayout(("rgb",), (1,), branches=2)
    policy = make_policy("easycache", warmup_steps=2, threshold=0.1)
    state = policy.reset(Schedule((1.0, 0.8, 0.6, 0.4), (0.0, 0.2, 0.4, 0.6), layout))
    for step in range(2):
        inputs = StepInput(lambda s=step: torch.full((2, 1), 5.0 - s))
        assert policy.should_compute(state, step, inputs)
        output = torch.tensor([[10.0], [10.0 + 50 * step]])
        policy.plan(state, policy.learn(state, step, output, inputs).tolist())
    inputs = StepInput(lambda: torch.full((2, 1), 3.0))
    assert not policy.should_compute(state, 2, inputs)
    assert policy.predict(state, 2, inputs).flatten().tolist() == [9.0, 59.0]


def test_the_defaults_compute_ten_steps_and_the_last():
    result = replay(torch.ones(14, 1, 1), "easycache", latents=torch.arange(14.0).reshape(-1, 1, 1) + 1)
    assert decisions(result) == "F" * 10 + "...F"


def test_latents_are_asked_for():
    with pytest.raises(InvalidInput) as refused:
        replay(torch.ones(3, 1, 1), "easycache")
    assert refused.value.param == "latents"
