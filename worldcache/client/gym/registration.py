"""The ids under which Gymnasium knows the environments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium

IDS: Mapping[str, Mapping[str, Any]] = {
    "WorldCache/World-v0": {},
    "WorldCache/doom-v0": {"model": "doom"},
}
"""What each id stands for; the general one takes ``model=``."""


def register_worlds() -> None:
    """Register the environments that are not registered yet."""
    for name, fields in IDS.items():
        if name not in gymnasium.registry:
            gymnasium.register(
                name,
                entry_point="worldcache.client.gym:WorldEnv",
                vector_entry_point="worldcache.client.gym:WorldVectorEnv",
                kwargs=dict(fields),
            )
