"""What every registered policy promises, whatever it predicts."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from worldcache.policies import (
    Policy,
    PolicyState,
    Schedule,
    StepInput,
    TokenLayout,
    get_policy_class,
    make_policy,
    policy_names,
)
from worldcache.policies.interval import IntervalConfig, IntervalPolicy
from worldcache.policies.replay import replay

STEPS = 24
LAYOUT = TokenLayout(("rgb", "depth"), (6, 3), branches=2)
PLANNING = [name for name in policy_names() if get_policy_class(name).plans_ahead]
AnyPolicy = Policy[Any, Any]

every_policy = pytest.mark.parametrize("name", policy_names())
planning_policy = pytest.mark.parametrize("name", PLANNING)


def schedule(num_steps: int = STEPS) -> Schedule:
    sigmas = tuple(1 - step / num_steps for step in range(num_steps))
    return Schedule(sigmas, tuple(1 - sigma for sigma in sigmas), LAYOUT)


def recording(seed: int, num_steps: int = STEPS) -> Tensor:
    """Smooth outputs ``[T, N, d]``: each entry a sine with its own phase and pace."""
    generator = torch.Generator().manual_seed(seed)
    phase, pace = torch.rand(2, LAYOUT.num_tokens, 4, generator=generator)
    return torch.sin(phase * 6 + pace * 3 * torch.linspace(0, 1, num_steps)[:, None, None])


def advance(policy: AnyPolicy, state: PolicyState, step: int, outputs: Tensor, latents: Tensor) -> Tensor:
    """One denoise step, as the denoise loop drives it; what the step used."""
    inputs = StepInput(lambda: latents[step], lambda: latents[step])
    if not policy.should_compute(state, step, inputs):
        return policy.predict(state, step, inputs)
    policy.plan(state, policy.learn(state, step, outputs[step], inputs).tolist())
    return outputs[step]


@every_policy
def test_deterministic(name: str):
    outputs, latents = recording(0), recording(1)
    first, second = (replay(outputs, name, latents=latents) for _ in range(2))
    assert torch.equal(first.is_full, second.is_full)
    assert torch.equal(first.output, second.output)


@every_policy
def test_interleaved_rollouts_do_not_touch_each_other(name: str):
    policy = make_policy(name)
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
    replay(outputs, name, latents=latents)
    assert torch.equal(outputs, before[0])
    assert torch.equal(latents, before[1])


@every_policy
def test_predicting_twice_gives_the_same(name: str):
    policy, outputs, latents = make_policy(name), recording(4), recording(5)
    state = policy.reset(schedule())
    for step in range(STEPS):
        cached = not policy.should_compute(state, step, latents[step])
        used = advance(policy, state, step, outputs, latents).clone()
        if cached:
            inputs = StepInput(lambda s=step: latents[s])
            assert torch.equal(policy.predict(state, step, inputs), used)


@every_policy
def test_the_first_step_is_full_and_every_step_has_an_output(name: str):
    outputs = recording(6)
    result = replay(outputs, name, latents=recording(7))
    assert bool(result.is_full[0])
    assert result.output.shape == outputs.shape
    assert result.output.dtype == torch.float32
    assert torch.equal(result.output[result.is_full], outputs[result.is_full])
    assert bool(result.output.isfinite().all())


@every_policy
@pytest.mark.parametrize("num_steps", [1, 2, 3, 4])
def test_short_schedules(name: str, num_steps: int):
    outputs = recording(8, num_steps)
    result = replay(outputs, name, latents=outputs)
    assert bool(result.is_full[0])
    assert bool(result.output.isfinite().all())


@every_policy
def test_a_constant_output_is_predicted_exactly(name: str):
    outputs = recording(9)[:1].repeat(STEPS, 1, 1)
    result = replay(outputs, name, latents=recording(10))
    torch.testing.assert_close(result.output, outputs, rtol=0, atol=1e-6)


@every_policy
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_not_finite_do_not_stop_the_rollout(name: str, bad: float):
    outputs, latents = recording(11), recording(12)
    clean = replay(outputs, name, latents=latents)
    poisoned = outputs.clone()
    poisoned[9, 2, 1] = bad
    result = replay(poisoned, name, latents=latents)
    assert torch.equal(result.is_full[:9], clean.is_full[:9])
    assert torch.equal(result.output[:9], clean.output[:9])


@planning_policy
def test_the_plan_is_the_decision_and_ends_with_the_schedule(name: str):
    policy, outputs, latents = make_policy(name), recording(13), recording(14)
    state = policy.reset(schedule())
    for step in range(STEPS):
        planned = state.next_full
        assert policy.should_compute(state, step, StepInput()) == (step == planned)
        advance(policy, state, step, outputs, latents)
        assert step < state.next_full <= STEPS


def roll_without_data(policy: AnyPolicy) -> int:
    """Roll out on tensors that hold no data, so that any read by the host raises; cached steps."""
    outputs = torch.empty(STEPS, LAYOUT.num_tokens, 4, device="meta")
    state, cached = policy.reset(schedule()), 0
    for step in range(STEPS):
        inputs = StepInput()
        if policy.should_compute(state, step, inputs):
            evidence = policy.learn(state, step, outputs[step], inputs)
            policy.plan(state, [1.0] + [0.01] * (evidence.numel() - 1))
        else:
            predicted = policy.predict(state, step, inputs)
            assert predicted.device.type == "meta"
            cached += 1
    return cached


@planning_policy
def test_neither_update_nor_predict_reads_to_the_host(name: str):
    cached = roll_without_data(make_policy(name))
    assert cached > 0 or name == "none"


class ReadingPolicy(IntervalPolicy):
    """Breaks the promise in one of several ways."""

    def __init__(self, how: str) -> None:
        super().__init__(IntervalConfig())
        self.how = how

    def predict(self, state: PolicyState, step: int, inputs: StepInput) -> Tensor:
        output = super().predict(state, step, inputs)
        reads = {
            "item": lambda: output.sum().item(),
            "tolist": lambda: output.tolist(),
            "bool": lambda: bool((output > 0).any()),
            "cpu": lambda: output.cpu(),
            "mask": lambda: output[output > 0],
        }
        reads[self.how]()
        return output


@pytest.mark.parametrize("how", ["item", "tolist", "bool", "cpu", "mask"])
def test_a_read_by_the_host_would_be_noticed(how: str):
    with pytest.raises((RuntimeError, NotImplementedError)):
        roll_without_data(ReadingPolicy(how))


@every_policy
def test_class_ratios_of_each_modality_sum_to_one(name: str):
    policy, outputs, latents = make_policy(name), recording(15), recording(16)
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
