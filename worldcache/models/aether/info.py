"""What Aether tells its users about itself, and what a request may ask of it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from worldcache.actions import CameraPoseActionSpace
from worldcache.core import Conditioning, Modality, ModelInfo, Preset, Task
from worldcache.errors import InvalidInput

FPS = (8, 10, 12, 15, 24)
"""Frame rates that the model was trained at."""

DEFAULT_FPS = 12.0

DEFAULT_FOV = 60.0
"""Horizontal, in degrees; nothing is published, and cameras that films are made with see about as much."""

FOV_RANGE = (10.0, 150.0)
"""Horizontal angles of view in degrees that a request may ask for."""

FRAMES = (17, 25, 33, 41)
"""How long a video may be, the observed frame included."""

FAR = 100.0
"""Depth that pictures show as farthest; the published demo drops what lies behind it."""

UNIT = "distances to the scene's nearest point"

TASKS: Mapping[str, Task] = MappingProxyType(
    {
        "prediction": Task(50, 3.0, (), "what follows the observed frame"),
        "planning": Task(50, 3.0, ("goal",), "the way from the observed frame to the goal"),
        "reconstruction": Task(
            4, 1.0, (), "depth and camera of a video; observe one frame more than there are actions"
        ),
    }
)

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "none": Preset("none"),
        "quality": Preset(
            "worldcache",
            {
                "stable_quantile": 0.30,
                "chaotic_quantile": 0.60,
                "max_skip": 1,
                "drift_threshold": 0.2,
                "warmup_steps": 10,
            },
        ),
        "balanced": Preset(
            "worldcache",
            {
                "stable_quantile": 0.30,
                "chaotic_quantile": 0.60,
                "max_skip": 2,
                "drift_threshold": 0.2,
                "warmup_steps": 10,
            },
        ),
        "fast": Preset(
            "worldcache",
            {
                "stable_quantile": 0.30,
                "chaotic_quantile": 0.60,
                "max_skip": 4,
                "drift_threshold": 0.5,
                "warmup_steps": 8,
            },
        ),
    }
)
"""``balanced`` as published for Aether; the others do less and more of the same, unmeasured."""


def describe(resolution: tuple[int, int], max_inference_steps: int) -> ModelInfo:
    """The facts about a model that makes frames of ``resolution`` (H, W)."""
    lengths = tuple(frames - 1 for frames in FRAMES)
    default = TASKS["prediction"]
    return ModelInfo(
        id="aether",
        description="Aether: video, depth and camera of a scene that a camera moves through, from one frame. "
        "An action is the camera in a frame, relative to the observed one; or none at all.",
        action_space=CameraPoseActionSpace(unit=f"1 in {UNIT}", optional=True),
        modalities=(
            Modality("rgb", 3, "8-bit sRGB", 255.0),
            Modality("depth", 1, f"along the camera's axis, in {UNIT}, 1 to 1000", FAR),
            Modality(
                "pose",
                16,
                f"camera-to-world, 4x4, x right, y down, z forward, in {UNIT}, relative to the first frame "
                "of its chunk",
                FAR,
                picture=False,
            ),
        ),
        resolution=resolution,
        fps=DEFAULT_FPS,
        context_frames=1,
        chunk_frames=lengths[-1],
        chunk_lengths=lengths,
        observed_frames=1,
        num_inference_steps=default.num_inference_steps,
        max_inference_steps=max_inference_steps,
        guidance_scale=default.guidance_scale,
        starts=(),
        presets=PRESETS,
        default_preset="balanced",
        conditioning={"task": tuple(TASKS), "goal": (), "fps": FPS, "fov": ()},
        tasks=TASKS,
        licence="Aether: MIT. VAE, text encoder and scheduler of CogVideoX-5b-I2V: the CogVideoX licence.",
        notice="The weights are not part of this software. AetherV1 is under the MIT licence; it is derived "
        "from CogVideoX-5b-I2V, whose parts are under the CogVideoX licence, which asks for registration "
        "before commercial use.",
    )


def check_conditioning(info: ModelInfo, conditioning: Conditioning) -> tuple[str, float, float]:
    """Task, frames a second and horizontal angle of view in degrees that a request asks for.

    Raises:
        InvalidInput: it asks for what there is not; ``param`` names the field.
    """
    info.task(conditioning)
    task = conditioning.task or next(iter(info.tasks))
    for name in ("prompt", "negative_prompt"):
        if getattr(conditioning, name) is not None:
            raise InvalidInput(
                f"the model takes no {name}; leave it out", param=f"conditioning.{name}", code="not_supported"
            )
    fps = DEFAULT_FPS if conditioning.fps is None else float(conditioning.fps)
    if fps not in FPS:
        raise InvalidInput(f"use one of {', '.join(map(str, FPS))}, not {fps:g}", param="conditioning.fps")
    fov = DEFAULT_FOV if conditioning.fov is None else float(conditioning.fov)
    low, high = FOV_RANGE
    if not low <= fov <= high:
        raise InvalidInput(f"use {low:g} to {high:g} degrees, not {fov:g}", param="conditioning.fov")
    if task == "planning" and conditioning.goal is None:
        raise InvalidInput("planning needs a goal", param="conditioning.goal")
    if task != "planning" and conditioning.goal is not None:
        raise InvalidInput(f"{task} takes no goal; choose planning", param="conditioning.goal")
    return task, fps, fov
