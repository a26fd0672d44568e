"""``calibration.json``: what was measured of a model after it was trained.

::

    {
      "policies": {"magcache": {"ratios": [1.0, ...]}, "teacache": {"coefficients": [...]}},
      "presets": {"fast": {"policy": "...", "parameters": {...}, "measured": {...}}},
      "auto": "fast"
    }

Every part may be left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from worldcache.core import Preset
from worldcache.policies.registry import get_policy_class, make_policy

FILE = "calibration.json"


@dataclass(frozen=True)
class Calibration:
    """The contents of a calibration file.

    Attributes:
        policies: calibrated parameters by policy.
        presets: presets by name; they stand in for the model's own of the same name.
        auto: the preset that ``auto`` stands for.
    """

    policies: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    presets: Mapping[str, Preset] = field(default_factory=dict)
    auto: str | None = None


def read_calibration(folder: Path, presets: Mapping[str, Any]) -> Calibration:
    """The folder's calibration on top of a model's own presets; empty but for these without a file.

    Args:
        folder: the model's.
        presets: the model's own, as plain data.

    Raises:
        KeyError: a preset names no policy.
        ValueError: the file is no such JSON, or names a policy, a parameter or a preset that cannot be used.
    """
    data: Mapping[str, Any] = {}
    if (folder / FILE).exists():
        data = json.loads((folder / FILE).read_text())
    if not isinstance(data, dict) or not {*data} <= {"policies", "presets", "auto"}:
        raise ValueError(f"{FILE} holds an object with policies, presets and auto")
    policies = {name: dict(parameters) for name, parameters in data.get("policies", {}).items()}
    for name, parameters in policies.items():
        make_policy(name, **parameters)
        if unknown := {*parameters} - {*get_policy_class(name).calibrated}:
            raise ValueError(f"{FILE}: policy {name!r} takes no {', '.join(sorted(unknown))} from it")
    chosen = {name: _preset(preset) for name, preset in {**presets, **data.get("presets", {})}.items()}
    auto = data.get("auto")
    if auto is not None and auto not in chosen:
        raise ValueError(f"{FILE}: auto is {auto!r}, which is no preset")
    return Calibration(policies, chosen, auto)


def _preset(data: Mapping[str, Any]) -> Preset:
    preset = Preset(data["policy"], data.get("parameters", {}), data.get("measured"))
    make_policy(preset.policy, **preset.parameters)
    return preset
