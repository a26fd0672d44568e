"""What is known of Voyager before any weights are read, and what a folder's ``world.json`` may change."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from worldcache.errors import ModelLoadError

WORLD = "world.json"

DESCRIPTION = (
    "HunyuanWorld-Voyager: RGB-D video along a camera's path, from one image with depth. The observation's "
    "depth is the distance along the direction of view, in any unit; camera translations have the same unit. "
    "The depth that is generated is relative inverse depth: 0 at the 2nd and 1 at the 98th percentile of "
    "what the frame shows."
)
UNIT = "the unit of the observation's depth"
DEPTH_UNIT = "relative inverse depth, 0 (far) to 1 (near) within each frame"
LICENCE = "Tencent HunyuanWorld-Voyager Community License; weights are the user's to supply"
NOTICE = (
    "Voyager's weights come under Tencent's community licence, which does not apply in the European Union, "
    "the United Kingdom and South Korea: it grants no rights there. Read it before you use them."
)

PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "none": {"policy": "none"},
        "quality": {
            "policy": "worldcache",
            "parameters": {
                "stable_quantile": 0.3,
                "chaotic_quantile": 0.6,
                "max_skip": 3,
                "warmup_steps": 10,
            },
        },
        "balanced": {
            "policy": "worldcache",
            "parameters": {
                "stable_quantile": 0.3,
                "chaotic_quantile": 0.6,
                "max_skip": 6,
                "drift_threshold": 1.0,
                "warmup_steps": 5,
            },
        },
        "fast": {
            "policy": "worldcache",
            "parameters": {
                "stable_quantile": 0.3,
                "chaotic_quantile": 0.6,
                "max_skip": 8,
                "drift_threshold": 2.0,
                "warmup_steps": 4,
            },
        },
    }
)
"""``balanced`` is as published."""

SHIFT = 7.0
"""Of the flow-matching schedule."""

NUM_INFERENCE_STEPS, GUIDANCE_SCALE = 50, 6.0

CELL = 16
"""Height and width are multiples of it: the VAE's 8 times the network's patches of 2."""

FOCAL_PER_WIDTH = 256 / 768
"""Of the camera that all scenes are seen by: 256 pixels at the published width."""

NOISE_SHARE = 0.999
"""Of the initial latent; the rest is the observed frame's."""

TRANSFORMER: Mapping[str, Any] = MappingProxyType(
    {
        "in_channels": 50,
        "out_channels": 16,
        "guidance_embeds": False,
        "image_condition_type": "latent_concat",
        "context_block": True,
    }
)
"""Arguments of the published network; the others are the defaults of diffusers' class."""

TEXT_LENGTH = 540
"""Places of a prompt: every other one of the picture's 576, and 252 of text."""


@dataclass(frozen=True)
class WorldFacts:
    """What a folder may say of its model; the defaults are the published model's.

    Attributes:
        resolution: height and width in pixels, multiples of 16.
        frames: of a chunk, the observed one counted; one more than a multiple of 4.
        fps: frames a second.
        focal_length: of the camera in pixels; a third of the width if ``None``.
        prompt, negative_prompt: for requests without.
        rope_axes_dim: channels of a head for time, height and width, where heads are not 128 wide.
    """

    resolution: tuple[int, int] = (512, 768)
    frames: int = 49
    fps: float = 24.0
    focal_length: float | None = None
    prompt: str = ""
    negative_prompt: str = "deformed, badly composed video; bad teeth, eyes and limbs"
    rope_axes_dim: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        if len(self.resolution) != 2 or any(not _whole(n) or n % CELL for n in self.resolution):
            raise ModelLoadError(f"resolution in {WORLD} must be two multiples of {CELL}")
        if not _whole(self.frames) or self.frames < 5 or self.frames % 4 != 1:
            raise ModelLoadError(f"frames in {WORLD} must be 5, 9, 13, ...")
        for name in ("fps", "focal_length"):
            value = getattr(self, name)
            number = isinstance(value, int | float) and math.isfinite(value) and value > 0
            if not number and not (value is None and name == "focal_length"):
                raise ModelLoadError(f"{name} in {WORLD} must be a number above 0")
        for name in ("prompt", "negative_prompt"):
            if not isinstance(getattr(self, name), str):
                raise ModelLoadError(f"{name} in {WORLD} must be a text")
        axes = self.rope_axes_dim
        if axes is not None and (len(axes) != 3 or any(not _whole(n) or n % 2 for n in axes)):
            raise ModelLoadError(f"rope_axes_dim in {WORLD} must be three even numbers")

    @property
    def focal(self) -> float:
        """The focal length in pixels."""
        return self.focal_length or self.resolution[1] * FOCAL_PER_WIDTH

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> WorldFacts:
        """From plain data.

        Raises:
            ModelLoadError: a field is unknown or cannot be used.
        """
        if unknown := {*data} - {*cls.__dataclass_fields__}:
            raise ModelLoadError(f"{WORLD} has no field {sorted(unknown)[0]!r}")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls(**values)


def read_facts(folder: Path) -> WorldFacts:
    """What the folder's ``world.json`` says; the published model's facts without one."""
    path = folder / WORLD
    if not path.exists():
        return WorldFacts()
    try:
        data = json.loads(path.read_text())
        if not isinstance(data, dict):
            raise ValueError("it must hold an object")
        return WorldFacts.of(data)
    except (OSError, ValueError, TypeError) as error:
        raise ModelLoadError(f"{path} cannot be read: {error}") from error


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
