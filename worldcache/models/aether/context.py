"""What a chunk is conditioned on before anything is encoded, and how that is written down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worldcache.actions import MOST_POSE, CameraPoseActionSpace, Pose
from worldcache.core import ModelInfo
from worldcache.decoded import Decoded
from worldcache.errors import InvalidInput
from worldcache.models.aether.info import FOV_RANGE, FPS, TASKS
from worldcache.models.context import ArraySpec, check_arrays

IDENTITY: Pose = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
"""The camera of the first frame."""

MAX_VIDEO = 10_000
"""Most frames of a video in a context that comes from outside."""


@dataclass(frozen=True)
class AetherContext:
    """Where a chunk starts from, and what for.

    Attributes:
        task: one of the model's.
        fps, fov: frames a second, and the horizontal angle of view in degrees.
        frames: uint8 ``[F, H, W, 3]``: the observed frame, or what is left of a video to reconstruct.
        goal: uint8 ``[1, H, W, 3]`` for planning.
        origin: the camera of the chunk's first frame, in the client's coordinates.
        before: the chunk before, whose last frame stands in for ``frames``; ``None`` at the start.
    """

    task: str
    fps: float
    fov: float
    frames: NDArray[np.uint8]
    goal: NDArray[np.uint8] | None = None
    origin: Pose = IDENTITY
    before: Decoded | None = None


def relative_poses(context: AetherContext, actions: Sequence[Pose | None]) -> Tensor | None:
    """The cameras ``[F, 4, 4]`` of a chunk's frames in the first one's coordinates, float32.

    ``None`` if the camera is left to the model.

    Raises:
        InvalidInput: some frames have a pose and others none.
    """
    given = [action for action in actions if action is not None]
    if not given:
        return None
    if len(given) != len(actions):
        raise InvalidInput("give a pose for every frame, or for none", param="actions")
    poses = torch.tensor([context.origin, *given], dtype=torch.float64)
    relative: Tensor = torch.linalg.solve(poses[:1], poses)
    return relative.float()


def export_arrays(context: AetherContext, frames: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    """A context that starts from ``frames`` as arrays."""
    goal = frames[:0] if context.goal is None else context.goal
    return {
        "frames": frames.copy(),
        "goal": goal.copy(),
        "origin": np.array(context.origin, np.float64),
        "request": np.array([list(TASKS).index(context.task), context.fps, context.fov], np.float64),
    }


def import_arrays(arrays: Mapping[str, NDArray[Any]], info: ModelInfo) -> AetherContext:
    """The context of :func:`export_arrays`, from anybody.

    Raises:
        InvalidInput: ``param`` names the array at fault.
    """
    picture = (*info.resolution, 3)
    lengths = {
        name: arrays[name].shape[0] for name in ("frames", "goal") if name in arrays and arrays[name].ndim
    }
    numbers, bytes_ = np.dtype(np.float64), np.dtype(np.uint8)
    check_arrays(
        arrays,
        {
            "frames": ArraySpec(bytes_, (lengths.get("frames", 1), *picture), 0, 255),
            "goal": ArraySpec(bytes_, (lengths.get("goal", 0), *picture), 0, 255),
            "origin": ArraySpec(numbers, (4, 4), -MOST_POSE, MOST_POSE),
            "request": ArraySpec(numbers, (3,), 0, max(*FPS, *FOV_RANGE)),
        },
    )
    if not 1 <= lengths["frames"] <= MAX_VIDEO:
        raise InvalidInput(f"'frames' must hold 1 to {MAX_VIDEO} frames", param="frames")
    number, fps, fov = arrays["request"].tolist()
    low, high = FOV_RANGE
    if number not in range(len(TASKS)) or fps not in FPS or not low <= fov <= high:
        raise InvalidInput("'request' must hold the task's number, fps and fov", param="request")
    task = list(TASKS)[int(number)]
    if lengths["goal"] != (task == "planning"):
        raise InvalidInput(f"'goal' must hold {int(task == 'planning')} frames in {task}", param="goal")
    assert isinstance(info.action_space, CameraPoseActionSpace)
    try:
        (origin,) = info.action_space.parse(arrays["origin"][None].tolist())
    except InvalidInput as error:
        raise error.at("origin") from None
    assert origin is not None
    goal = arrays["goal"].copy() if lengths["goal"] else None
    return AetherContext(task, fps, fov, arrays["frames"].copy(), goal, origin)
