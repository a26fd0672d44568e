"""One branch of one pipeline call: its policy's state, and the steps it has taken.

Knows nothing of hooks, pipelines or schedulers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from worldcache.errors import InvalidInput
from worldcache.pipelines.layout import LayoutRules, OutputLayout
from worldcache.pipelines.levels import NoiseLevels
from worldcache.policies import PolicyState, Schedule, StepInput
from worldcache.policies.registry import AnyPolicy


class Walk:
    """Consecutive steps of one branch under one policy state.

    The policy sees the steps from the walk's first one to the schedule's last. The first one is
    computed in any case, as the layout of the output is known only then.

    Args:
        policy: decides and predicts.
        levels: noise levels of the whole schedule.
        first: index of the walk's first step in it.
        rules: how outputs become tokens.
        signature: what every call of the walk has in common.

    Attributes:
        fell_back: whether the latest step showed a value that is not finite, which makes the next one FULL.
    """

    def __init__(
        self, policy: AnyPolicy, levels: NoiseLevels, first: int, rules: LayoutRules, signature: object
    ) -> None:
        self._policy = policy
        self._levels = levels
        self._first = self.next = first
        self._rules = rules
        self._signature = signature
        self._layout: OutputLayout | None = None
        self._state: PolicyState | None = None
        self.fell_back = False

    @property
    def tokens(self) -> int:
        """Tokens of an output; known from the first step on."""
        assert self._layout is not None
        return self._layout.tokens.num_tokens

    @property
    def drift(self) -> float | None:
        """Accumulated drift after the latest step, ``None`` for policies without one."""
        return None if self._state is None else self._state.drift

    @property
    def done(self) -> bool:
        return self.next == len(self._levels)

    def continues(self, index: int, signature: object) -> bool:
        """Whether the step ``index`` of a call like this is the walk's next one."""
        return index == self.next and signature == self._signature

    def take(self, sample: object, compute: Callable[[], Any]) -> tuple[Any, bool]:
        """Take the next step.

        Args:
            sample: the transformer's first argument.
            compute: calls the transformer.

        Returns:
            What the transformer returned or would have returned, and whether the step was FULL.
        """
        step, self.fell_back = self.next - self._first, False
        inputs = StepInput(lambda: self._latent(sample))
        with torch.no_grad():
            if self._may_skip(step, inputs):
                assert self._layout is not None
                predicted = self._layout.from_tokens(self._policy.predict(self._state, step, inputs))
                self.next += 1
                return predicted, False
        output = compute()
        with torch.no_grad():
            self._learn(step, output, inputs)
        self.next += 1
        return output, True

    def _may_skip(self, step: int, inputs: StepInput) -> bool:
        return self._state is not None and not self._policy.should_compute(self._state, step, inputs)

    def _learn(self, step: int, output: Any, inputs: StepInput) -> None:
        """Learn from a FULL step, and begin anew with it if the output has another shape than before."""
        if self._layout is None or not self._layout.fits(output):
            self._layout = OutputLayout(output, self._rules)
            self._first, step = self.next, 0
            levels = self._levels.since(self._first)
            schedule = Schedule(levels.sigmas, levels.alphas, self._layout.tokens, levels.prediction)
            self._state = self._policy.reset(schedule)
            self._policy.should_compute(self._state, step, inputs)
        evidence = self._policy.learn(self._state, step, self._layout.to_tokens(output), inputs)
        assert self._state is not None
        before = self._state.fallbacks
        self._policy.plan(self._state, evidence.tolist())
        self.fell_back = self._state.fallbacks > before

    def _latent(self, sample: object) -> Tensor:
        assert self._layout is not None
        tokens = self._layout.latent_tokens(sample)
        if tokens is None:
            raise InvalidInput(
                f"policy {self._policy.name!r} compares the latent with the output, and this transformer's "
                "first argument does not begin with a latent of the output's shape; choose another policy",
                param="policy",
                code="not_supported",
            )
        return tokens
