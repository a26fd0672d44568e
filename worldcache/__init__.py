"""WorldCache: cached, action-conditioned rollouts of diffusion world models.

    import worldcache

    model = worldcache.load_model("doom")
    result = worldcache.rollout(model, actions=["MOVE_LEFT"] * 32, policy="worldcache")
    result.frames["rgb"]          # uint8 [32, 48, 64, 3]
    result.stats.skip_ratio       # share of the denoise steps that were predicted

Importing this package imports none of its parts: each is loaded when it is first used, so that the
HTTP client needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worldcache.api import RolloutResult, rollout
    from worldcache.models.registry import load_model, model_names
    from worldcache.pipelines.enable import disable, enable, steps, summary
    from worldcache.pipelines.summary import CacheSummary
    from worldcache.policies.replay import Replay, replay

__all__ = [
    "CacheSummary",
    "Replay",
    "RolloutResult",
    "__version__",
    "disable",
    "enable",
    "load_model",
    "model_names",
    "replay",
    "rollout",
    "steps",
    "summary",
]

__version__ = "0.1.0"

_HOMES = {
    "CacheSummary": "worldcache.pipelines.summary",
    "Replay": "worldcache.policies.replay",
    "RolloutResult": "worldcache.api",
    "disable": "worldcache.pipelines.enable",
    "enable": "worldcache.pipelines.enable",
    "load_model": "worldcache.models.registry",
    "model_names": "worldcache.models.registry",
    "replay": "worldcache.policies.replay",
    "rollout": "worldcache.api",
    "steps": "worldcache.pipelines.enable",
    "summary": "worldcache.pipelines.enable",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'worldcache' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
