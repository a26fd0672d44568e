"""What a pipeline says about itself: sizes, frames, defaults, licence. Nothing here runs it.

What it leaves open, or what shall be different, may stand in a ``world.json`` beside ``model_index.json``,
and measured presets in a ``calibration.json``.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt
from torch import nn

from worldcache.actions import DiscreteActionSpace
from worldcache.core import Modality, ModelInfo
from worldcache.errors import InvalidInput, ModelLoadError
from worldcache.models.calibration import read_calibration
from worldcache.models.pipeline.context import TEXTS
from worldcache.pipelines.enable import transformers_of

WORLD_FILE, CARD = "world.json", "README.md"

NEEDED = ("image", "num_frames", "height", "width", "num_inference_steps", "generator", "output_type")
"""Arguments without which a pipeline cannot be served."""

USUAL_FPS, USUAL_STEPS = 16.0, 50

PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "none": {"policy": "none"},
        "quality": {
            "policy": "worldcache",
            "parameters": {"max_skip": 2, "drift_threshold": 0.2, "warmup_steps": 10},
        },
        "balanced": {"policy": "worldcache"},
        "fast": {
            "policy": "worldcache",
            "parameters": {"max_skip": 8, "drift_threshold": 4.0, "warmup_steps": 3},
        },
    }
)
"""Not measured on any pipeline; ``quality`` and ``balanced`` are the published ones of two world models."""

_LICENCE = re.compile(r"^license(?:_name)?:[ \t]*(\S.*?)[ \t]*$", re.MULTILINE)
_IN_GROUPS = ("AutoencoderKLCogVideoX",)
_TEMPORAL = ("vae_scale_factor_temporal", "vae_temporal_compression_ratio")
_SPATIAL = ("vae_scale_factor_spatial", "vae_spatial_compression_ratio")


class WorldFile(BaseModel):
    """``world.json``: whatever is given goes before what the pipeline says."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    description: str | None = None
    licence: str | None = None
    notice: str | None = None
    height: PositiveInt | None = None
    width: PositiveInt | None = None
    num_frames: PositiveInt | None = None
    fps: PositiveFloat | None = None
    num_inference_steps: PositiveInt | None = None
    guidance_scale: float | None = Field(default=None, ge=0)
    presets: dict[str, dict[str, Any]] = Field(default_factory=dict)
    default_preset: str = "balanced"


@dataclass(frozen=True)
class PipelineFacts:
    """What is known of a pipeline before it runs.

    Attributes:
        info: for its users.
        arguments: names that its call takes.
        latent: channels of its latents, and by how much they are smaller than the video in time and space.
    """

    info: ModelInfo
    arguments: frozenset[str]
    latent: tuple[int, int, int]

    def latent_shape(self, frames: int) -> tuple[int, ...]:
        """``[C, T, h, w]`` of the latents of so many frames."""
        channels, temporal, spatial = self.latent
        height, width = self.info.resolution
        return channels, (frames - 1) // temporal + 1, height // spatial, width // spatial


def read_facts(pipe: Any, name: str, folder: Path) -> PipelineFacts:
    """The facts of a loaded pipeline.

    Args:
        pipe: the pipeline.
        name: what its users know it by.
        folder: its files.

    Raises:
        ModelLoadError: it is no image-to-video pipeline of a transformer, or does not say enough.
    """
    call = inspect.signature(type(pipe).__call__).parameters
    defaults = {key: given.default for key, given in call.items()}
    _check_kind(pipe, defaults)
    try:
        world = _read_world(folder)
        calibration = read_calibration(folder, {**PRESETS, **world.presets})
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise ModelLoadError(f"{folder} cannot be served: {error}") from error
    config: Any = next(iter(transformers_of(pipe).values())).config
    vae = getattr(pipe, "vae", None)
    temporal = _whole(_find(_TEMPORAL, pipe) or _find(("temporal_compression_ratio",), vae) or 1)
    spatial = _whole(_find(_SPATIAL, pipe) or _find(("spatial_compression_ratio",), vae) or 8)
    numbers = (
        world.height or defaults["height"] or _scaled(config.get("sample_height"), spatial),
        world.width or defaults["width"] or _scaled(config.get("sample_width"), spatial),
        world.num_frames or defaults["num_frames"] or config.get("sample_frames"),
    )
    if not all(isinstance(number, int) for number in numbers):
        raise ModelLoadError(
            f"{name} does not say how large its videos are; put height, width and num_frames into "
            f"{folder / WORLD_FILE}"
        )
    height, width, frames = (_whole(number) for number in numbers)
    if world.default_preset not in calibration.presets:
        raise ModelLoadError(f"{folder / WORLD_FILE}: default_preset is none of the presets")
    lengths = chunk_lengths(frames, temporal * _frames_decoded_together(vae))
    steps = getattr(getattr(pipe, "scheduler", None), "config", {}).get("num_train_timesteps")
    info = ModelInfo(
        id="diffusers",
        description=world.description or f"{name}, served as the {type(pipe).__name__} of diffusers",
        action_space=DiscreteActionSpace(("NOOP",)),
        modalities=(Modality("rgb", 3, "8-bit sRGB", 255.0),),
        resolution=(height, width),
        fps=world.fps or _number(defaults.get("frame_rate"), defaults.get("fps")) or USUAL_FPS,
        context_frames=1,
        chunk_frames=lengths[-1],
        chunk_lengths=lengths,
        num_inference_steps=world.num_inference_steps or defaults["num_inference_steps"] or USUAL_STEPS,
        max_inference_steps=_whole(steps or 1000),
        guidance_scale=_guidance(world.guidance_scale, defaults),
        starts=(),
        presets=calibration.presets,
        default_preset=world.default_preset,
        calibrations=calibration.policies,
        auto_preset=calibration.auto,
        conditioning={text: () for text in TEXTS if text in call},
        licence=world.licence or _read_licence(folder) or "see the model's own licence",
        notice=world.notice,
    )
    channels = _number(config.get("out_channels"), config.get("in_channels")) or 16
    return PipelineFacts(info, frozenset(call), (int(channels), temporal, spatial))


def chunk_lengths(most: int, ratio: int) -> tuple[int, ...]:
    """The frame counts that a video model takes, rising: one more than a multiple of ``ratio``.

    Args:
        most: frames, which are the last count, rounded down to one that fits.
        ratio: frames of the latent frames that are decoded together, after the first.
    """
    return tuple(range(1 + ratio, most + 1, ratio)) or (most,)


def _check_kind(pipe: Any, arguments: Mapping[str, object]) -> None:
    """Refuse what cannot be served, and say why."""
    name = type(pipe).__name__
    try:
        modules: Mapping[str, nn.Module] = transformers_of(pipe)
    except InvalidInput:
        raise ModelLoadError(f"{name} has no transformer; only pipelines that have one are served") from None
    if not all(isinstance(getattr(module, "config", None), Mapping) for module in modules.values()):
        raise ModelLoadError(f"the transformer of {name} is none of diffusers")
    if getattr(pipe, "scheduler", None) is None:
        raise ModelLoadError(f"{name} has no scheduler")
    missing = [argument for argument in NEEDED if argument not in arguments]
    if "image" in missing:
        raise ModelLoadError(
            f"{name} takes no image: a rollout starts from an observation, so only image-to-video pipelines "
            "are served"
        )
    if missing:
        raise ModelLoadError(f"{name} cannot be served: its call takes no {', '.join(missing)}")


def _read_world(folder: Path) -> WorldFile:
    """``world.json``; empty without a file.

    Raises:
        ValueError: it is no such JSON.
    """
    file = folder / WORLD_FILE
    return WorldFile.model_validate_json(file.read_text()) if file.exists() else WorldFile()


def _read_licence(folder: Path) -> str | None:
    """The licence in the head of the model card, if there is one."""
    card = folder / CARD
    text = card.read_text(errors="replace") if card.exists() else ""
    head = text.split("\n---", 1)[0] if text.startswith("---") else ""
    found = dict(match.group(0).split(":", 1) for match in _LICENCE.finditer(head))
    licence = found.get("license_name") if found.get("license", "").strip() == "other" else None
    return (licence or found.get("license", "")).strip() or None


def _find(names: tuple[str, ...], owner: Any) -> Any:
    """The first of these numbers that there is, in the object's config or on itself."""
    config = getattr(owner, "config", {})
    values = (config.get(name) or getattr(owner, name, None) for name in names)
    return next((value for value in values if value), None)


def _frames_decoded_together(vae: Any) -> int:
    """Latent frames that a decoder takes at a time, if it makes more of a rest than it should."""
    named = any(base.__name__ in _IN_GROUPS for base in type(vae).__mro__)
    return _whole(getattr(vae, "num_latent_frames_batch_size", 1)) if named else 1


def _scaled(size: object, factor: int) -> int | None:
    return size * factor if isinstance(size, int) else None


def _whole(value: Any) -> int:
    return max(1, int(value))


def _number(*values: Any) -> float | None:
    """The first number above 0."""
    for value in values:
        if isinstance(value, int | float) and value > 0:
            return float(value)
    return None


def _guidance(given: float | None, defaults: Mapping[str, Any]) -> float:
    default = defaults.get("guidance_scale")
    if "guidance_scale" not in defaults:
        return 1.0
    if given is not None:
        return given
    return float(default) if isinstance(default, int | float) else 1.0
