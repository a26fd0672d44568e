"""The circumstances under which policies are compared, as data.

A setting roughens the path that a chunk takes through the noise levels. It changes a run through what
any caller may change: the sampler's shift, the guidance scale, the frames of the observation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from worldcache.core import Observation


@dataclass(frozen=True)
class Setting:
    """One set of circumstances.

    Attributes:
        name, description: for tables.
        shift: flow shift of the noise levels, ``None`` for the model's own.
        guidance_scale: 1 for none.
        context_frames: newest frames of context that are given; ``None`` for all. The model pads.
    """

    name: str
    description: str
    shift: float | None = None
    guidance_scale: float = 1.0
    context_frames: int | None = None

    def observe(self, observation: Observation) -> Observation:
        """The observation as this setting gives it."""
        if self.context_frames is None or observation.frames is None:
            return observation
        newest = slice(-self.context_frames, None)
        depth = None if observation.depth is None else observation.depth[newest]
        return Observation(frames=observation.frames[newest], depth=depth)


SETTINGS: Mapping[str, Setting] = MappingProxyType(
    {
        setting.name: setting
        for setting in (
            Setting("base", "the model's own shift, no guidance, full context"),
            Setting("shift7", "flow shift 7", shift=7.0),
            Setting("guided3", "guidance scale 3", guidance_scale=3.0),
            Setting("single_frame", "the newest frame of the context alone", context_frames=1),
        )
    }
)
