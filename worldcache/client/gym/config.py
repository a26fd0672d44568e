"""What can be asked of an environment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, TypedDict

from numpy.typing import NDArray

Pictures: TypeAlias = NDArray[Any] | dict[str, NDArray[Any]]
"""``rgb`` alone, or, with depth, arrays by modality."""

Reward: TypeAlias = Callable[[Any, Any, Any], float | tuple[float, bool]]
"""A function of the observation before, the action, and the frames that came of it, oldest first: a reward,
or a reward and whether the episode has terminated."""


class WorldFields(TypedDict, total=False):
    """What can be asked of an environment.

    Attributes:
        start: name of a start of the model's; drawn anew for every episode if left out.
        cache: name of a preset, or ``{"policy": ..., ...}``; the model's default preset if left out.
        num_inference_steps: denoise steps per chunk.
        guidance_scale: 1 for none.
        frames_per_step: that one action lasts; the model's ``chunk_frames`` or a multiple of it.
        depth: observe ``{"rgb", "depth"}`` instead of ``rgb``.
        reset_action: taken while the first frames of an episode are generated; ``NOOP``, or else the first
            of a discrete space, or the one of a box that is nearest to zero, if left out.
        reward: a function of the observation before, the action and the frames; 0 if left out.
    """

    start: str | None
    cache: str | Mapping[str, Any] | None
    num_inference_steps: int | None
    guidance_scale: float | None
    frames_per_step: int | None
    depth: bool
    reset_action: Any
    reward: Reward | None


@dataclass(frozen=True)
class WorldConfig:
    """A model, and :class:`WorldFields` as they were asked for."""

    model: str
    start: str | None = None
    cache: str | Mapping[str, Any] | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    frames_per_step: int | None = None
    depth: bool = False
    reset_action: Any = None
    reward: Reward | None = None

    @property
    def modalities(self) -> tuple[str, ...]:
        """That are observed."""
        return ("rgb", "depth") if self.depth else ("rgb",)
