"""Cache presets, none of them measured on this model yet."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from worldcache.core import Preset

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "none": Preset("none"),
        "quality": Preset("worldcache", {"max_skip": 2, "drift_threshold": 0.2, "warmup_steps": 10}),
        "balanced": Preset("worldcache"),
        "fast": Preset("worldcache", {"max_skip": 8, "drift_threshold": 4.0, "warmup_steps": 5}),
    }
)
"""``balanced`` has the parameters published for Voyager, which are the policy's defaults."""
