"""``none``: compute every step. The reference that every other policy is measured against."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from worldcache.policies.base import PolicyConfig, PolicyState, Schedule, StepInput
from worldcache.policies.planned import IndexPlanPolicy, plain_state


class NoneConfig(PolicyConfig):
    """``none`` has no parameters."""


class NonePolicy(IndexPlanPolicy[NoneConfig, PolicyState]):
    """Every step is FULL, nothing is predicted."""

    name: ClassVar[str] = "none"
    description: ClassVar[str] = "Computes every denoise step."
    source: ClassVar[str] = "the sampler without a cache"
    config_type: ClassVar[type[PolicyConfig]] = NoneConfig

    def reset(self, schedule: Schedule) -> PolicyState:
        return plain_state(schedule)

    def is_due(self, step: int) -> bool:
        return True

    def predict(self, state: PolicyState, step: int, inputs: StepInput) -> Tensor:
        raise AssertionError("policy 'none' computes every step and is never asked to predict")
