"""Cache policies: which denoise steps to compute, and what to use in place of the others."""

from worldcache.policies.base import (
    History,
    Policy,
    PolicyConfig,
    PolicyState,
    Schedule,
    StepInput,
    TokenLayout,
)
from worldcache.policies.registry import describe_policies, get_policy_class, make_policy, policy_names

__all__ = [
    "History",
    "Policy",
    "PolicyConfig",
    "PolicyState",
    "Schedule",
    "StepInput",
    "TokenLayout",
    "describe_policies",
    "get_policy_class",
    "make_policy",
    "policy_names",
]
