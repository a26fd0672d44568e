"""What a step may cost, whatever the policy: reads by the host, and memory."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.policies.contract import (
    LAYOUT,
    STEPS,
    AnyPolicy,
    advance,
    every_policy,
    make,
    planning_policy,
    recording,
    schedule,
)
from worldcache.policies import PolicyState, StepInput
from worldcache.policies.interval import IntervalConfig, IntervalPolicy


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
