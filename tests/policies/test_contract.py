"""What every registered policy promises, whatever it predicts."""

import copy
import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

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
from worldcache.policies.replay import Replay, replay

STEPS = 24
LAYOUT = TokenLayout(("rgb", "depth"), (6, 3), branches=2)
PLANNING = [name for name in policy_names() if get_policy_class(name).plans_ahead]
AnyPolicy = Policy[Any, Any]

# What lets a policy skip on the recordings below: a calibration as of a model whose output changes half
# as much as its modulated input and grows by a hundredth a step, or a wider threshold.
PARAMETERS: Mapping[str, dict[str, Any]] = {
    "easycache": {"threshold": 0.5},
    "teacache": {"coefficients": (0.5, 0.0)},
    "magcache": {"ratios": (1.01,) * STEPS},
}

every_policy = pytest.mark.parametrize("name", policy_names())
planning_policy = pytest.mark.parametrize("name", PLANNING)


def make(name: str) -> AnyPolicy:
    return make_policy(name, **PARAMETERS.get(name, {}))


def play(name: str, outputs: Tensor, latents: Tensor) -> Replay:
    return replay(outputs, name, latents=latents, **PARAMETERS.get(name, {}))


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
    cached = roll_without_data(make(name))
    assert cached > 0 or name == "none"


class ReadCounter(TorchDispatchMode):
    """Counts the scalars that the host reads."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.reads += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def reads_per_step(policy: AnyPolicy) -> tuple[list[int], list[bool]]:
    """Scalars read in each step, and whether it was cached."""
    outputs, latents = recording(20), recording(21)
    state, reads, cached = policy.reset(schedule()), [], []
    for step in range(STEPS):
        newest = state.newest if step else -1
        with ReadCounter() as counter:
            advance(policy, state, step, outputs, latents)
        reads.append(counter.reads)
        cached.append(state.newest == newest)
    return reads, cached


@every_policy
def test_a_step_reads_one_scalar_at_most_and_none_if_it_was_planned(name: str):
    policy = make(name)
    reads, cached = reads_per_step(policy)
    assert any(cached) or name == "none"
    assert max(reads) <= (0 if policy.plans_ahead else 1)


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


@pytest.mark.parametrize("how", ["item", "bool"])
def test_a_scalar_read_would_be_counted(how: str):
    reads, cached = reads_per_step(ReadingPolicy(how))
    assert reads == [int(is_cached) for is_cached in cached]
    assert sum(reads) > 0


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
            for later in range(step, step + 4):
                assert policy.predict(state, later, inputs).shape == outputs[step].shape
            assert repr(state) == repr(before)
        used = advance(policy, state, step, outputs, latents)
        assert torch.equal(used, advance(policy, other, step, outputs, latents))


def held_tensors(value: Any) -> list[Tensor]:
    """Every tensor that can be reached from ``value``, each once."""
    found: dict[int, Tensor] = {}
    stack = [value]
    while stack:
        entry = stack.pop()
        if isinstance(entry, Tensor):
            found[id(entry)] = entry
        elif hasattr(entry, "__dict__"):
            stack.extend(vars(entry).values())
        elif isinstance(entry, dict):
            stack.extend(entry.values())
        elif hasattr(entry, "__iter__") and not isinstance(entry, str):
            stack.extend(entry)
    return list(found.values())


@every_policy
def test_a_state_keeps_as_many_outputs_as_the_policy_says(name: str):
    policy, outputs, latents = make(name), recording(22).repeat(1, 1, 8), recording(23).repeat(1, 1, 8)
    state, kept = policy.reset(schedule()), 0
    output_bytes = outputs[0].numel() * outputs.element_size()
    for step in range(STEPS):
        inputs = StepInput(lambda s=step: latents[s].clone(), lambda s=step: latents[s].clone())
        if policy.should_compute(state, step, inputs):
            policy.plan(state, policy.learn(state, step, outputs[step].clone(), inputs).tolist())
        memory = policy.memory_bytes(state)
        assert memory == sum(t.numel() * t.element_size() for t in held_tensors(state))
        kept = max(kept, memory // output_bytes)
    assert kept == policy.kept_outputs


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
