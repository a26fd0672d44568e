"""From what a caller asked for to a policy, completed by what is known of the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from worldcache.core import ModelInfo
from worldcache.errors import InvalidInput, PolicyNotCalibrated
from worldcache.policies.registry import AnyPolicy, get_policy_class, make_policy


def choose_policy(request: str | Mapping[str, Any] | None, info: ModelInfo) -> AnyPolicy:
    """The policy for a rollout of a model.

    Args:
        request: a preset's name (or ``auto``); or a mapping with ``policy``, a policy's name, and its
            parameters; or ``None`` for the model's default preset.
        info: the model's. Parameters that a policy takes from a calibration come from here unless
            they are given.

    Raises:
        UnknownName: no preset or policy has this name.
        InvalidInput: a parameter is unknown or its value cannot be used.
        PolicyNotCalibrated: the policy needs a calibration that the model lacks.
    """
    if request is None or isinstance(request, str):
        preset = info.preset(info.default_preset if request is None else request)
        return _calibrated_policy(preset.policy, preset.parameters, info)
    parameters = dict(request)
    name = parameters.pop("policy", None)
    if not isinstance(name, str):
        raise InvalidInput("cache.policy must be the name of a policy", param="cache.policy")
    return _calibrated_policy(name, parameters, info)


def is_preset(name: str, info: ModelInfo) -> bool:
    """Whether ``name`` is one of the model's presets, ``auto`` included."""
    return name == "auto" or name in info.presets


def _calibrated_policy(name: str, parameters: Mapping[str, Any], info: ModelInfo) -> AnyPolicy:
    measured = info.calibrations.get(name, {})
    complete = dict(parameters)
    for needed in get_policy_class(name).calibrated:
        if complete.get(needed) is None:
            if measured.get(needed) is None:
                raise PolicyNotCalibrated(name, info.id, param="cache.policy")
            complete[needed] = measured[needed]
    return make_policy(name, **complete)
