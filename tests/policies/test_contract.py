"""What every registered policy promises, whatever it predicts."""

import copy
import math

import pytest
import torch

from tests.policies.contract import (
    LAYOUT,
    PLANNING,
    STEPS,
    advance,
    every_policy,
    make,
    planning_policy,
    play,
    recording,
    schedule,
)
from worldcache.policies import StepInput, policy_names


@every_policy
def test_deterministic(name: str):
    outputs, latents = recording(0), recording(1)
    first, second = (play(name, outputs, latents) for _ in range(2))
    assert torch.equal(first.is_full, second.is_full)
    assert torch.equal(first.output, second.output)


@every_policy
def test_interleaved_rollouts_do_not_touch_each_other(name: str):
    policy = make(name)
    recordings = [(recording(seed), recording(seed + 1)) for seed in (0, 10, 20)]
    alone = []
    for outputs, latents in recordings:
        state = policy.reset(schedule())
        alone.append(torch.stack([advance(policy, state, s, outputs, latents) for s in range(STEPS)]))
    states = [policy.reset(schedule()) for _ in recordings]
    used = [
        [advance(policy, state, s, *pair) for state, pair in zip(states, recordings, strict=True)]
        for s in range(STEPS)
    ]
    together = [torch.stack(rollout) for rollout in zip(*used, strict=True)]
    assert all(map(torch.equal, alone, together))


@every_policy
def test_outputs_handed_in_are_never_written_to(name: str):
    outputs, latents = recording(2), recording(3)
    before = outputs.clone(), latents.clone()
    play(name, outputs, latents)
    assert torch.equal(outputs, before[0])
    assert torch.equal(latents, before[1])


@every_policy
def test_predicting_twice_gives_the_same(name: str):
    policy, outputs, latents = make(name), recording(4), recording(5)
    state = policy.reset(schedule())
    for step in range(STEPS):
        used = advance(policy, state, step, outputs, latents).clone()
        if state.newest != step:
            inputs = StepInput(lambda s=step: latents[s])
            assert torch.equal(policy.predict(state, step, inputs), used)


@every_policy
def test_the_first_step_is_full_and_every_step_has_an_output(name: str):
    outputs = recording(6)
    result = play(name, outputs, recording(7))
    assert bool(result.is_full[0])
    assert result.output.shape == outputs.shape
    assert result.output.dtype == torch.float32
    assert torch.equal(result.output[result.is_full], outputs[result.is_full])
    assert bool(result.output.isfinite().all())


@every_policy
@pytest.mark.parametrize("num_steps", [1, 2, 3, 4])
def test_short_schedules(name: str, num_steps: int):
    outputs = recording(8, num_steps)
    result = play(name, outputs, outputs)
    assert bool(result.is_full[0])
    assert bool(result.output.isfinite().all())


@every_policy
def test_a_constant_output_is_predicted_exactly(name: str):
    outputs = latents = recording(9)[:1].repeat(STEPS, 1, 1)
    result = play(name, outputs, latents)
    torch.testing.assert_close(result.output, outputs, rtol=0, atol=1e-6)


@every_policy
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_makes_the_next_step_full(name: str, bad: float):
    outputs, latents = recording(11), recording(12)
    clean = play(name, outputs, latents)
    poisoned = outputs.clone()
    at = int(clean.is_full.nonzero()[-2])  # the last FULL step that others follow, at any schedule
    poisoned[at, 2, 1] = bad
    result = play(name, poisoned, latents)
    assert torch.equal(result.is_full[:at], clean.is_full[:at])
    assert torch.equal(result.output[:at], clean.output[:at])
    assert bool(result.is_full[at + 1])
    assert bool(result.output[at + 1 :].isfinite().all())
    assert clean.fallbacks == 0
    assert 1 <= result.fallbacks <= make(name).reach + 1


@every_policy
def test_outputs_that_are_never_finite_are_all_computed(name: str):
    outputs = torch.full_like(recording(11), math.nan)
    result = play(name, outputs, recording(12))
    assert bool(result.is_full.all())
    assert result.fallbacks == STEPS


@pytest.mark.parametrize("name", [name for name in policy_names() if name not in PLANNING])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_measured_change_that_is_not_finite_makes_the_step_full(name: str, bad: float):
    outputs, latents = recording(11), recording(12)
    cached = int((~play(name, outputs, latents).is_full).nonzero()[0])
    latents[cached, 0, 0] = bad
    result = play(name, outputs, latents)
    assert bool(result.is_full[cached])
    assert result.fallbacks >= 1


@planning_policy
def test_the_plan_is_the_decision_and_ends_with_the_schedule(name: str):
    policy, outputs, latents = make(name), recording(13), recording(14)
    state = policy.reset(schedule())
    for step in range(STEPS):
        planned = state.next_full
        assert policy.should_compute(state, step, StepInput()) == (step == planned)
        advance(policy, state, step, outputs, latents)
        assert step < state.next_full <= STEPS


@every_policy
def test_predicting_changes_nothing_and_reaches_beyond_the_streak(name: str):
    if name == "none":
        pytest.skip("none predicts nothing")
    policy, outputs, latents = make(name), recording(17), recording(18)
    state, other = policy.reset(schedule()), policy.reset(schedule())
    for step in range(STEPS):
        inputs = StepInput(lambda s=step: latents[s], lambda s=step: latents[s])
        if step > policy.reach + 1:
            before = copy.deepcopy(state)
            for later in range(step, min(step + 4, STEPS)):
                assert policy.predict(state, later, inputs).shape == outputs[step].shape
            assert repr(state) == repr(before)
        used = advance(policy, state, step, outputs, latents)
        assert torch.equal(used, advance(policy, other, step, outputs, latents))


@every_policy
def test_class_ratios_of_each_modality_sum_to_one(name: str):
    policy, outputs, latents = make(name), recording(15), recording(16)
    state = policy.reset(schedule())
    assert policy.class_ratios(state) is None
    for step in range(STEPS):
        advance(policy, state, step, outputs, latents)
    ratios = policy.class_ratios(state)
    if state.token_class is None:
        assert ratios is None
        return
    assert ratios is not None
    assert set(ratios) == set(LAYOUT.names)
    for shares in ratios.values():
        assert sum(shares.values()) == pytest.approx(1.0)
