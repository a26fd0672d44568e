"""What clients condition a rollout on besides its observation and its actions, checked against the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.errors import ApiError
from app.schemas import CameraBody, ConditioningBody
from worldcache.actions import CameraPoseActionSpace
from worldcache.cameras import TRAJECTORIES, trajectory
from worldcache.core import Conditioning, ModelInfo, Task
from worldcache.errors import InvalidInput, UnknownName

PARAM = "conditioning"
FREE = "free"
"""The trajectory that leaves the camera to the model."""


def check_conditioning(body: ConditioningBody, info: ModelInfo) -> Task:
    """Refuse what the model cannot be conditioned on; what it is asked to do, with its defaults.

    Raises:
        ApiError, InvalidInput: the message names the field at fault and what there is instead.
    """
    given = {name: value for name, value in body if value is not None and name != "camera"}
    for name, value in given.items():
        allowed = info.conditioning.get(name)
        if allowed is None:
            raise _not_supported(name, info)
        if allowed and value not in allowed:
            shown = f"{value:g}" if isinstance(value, float) else str(value)
            raise UnknownName(name, shown, map(str, allowed), param=f"{PARAM}.{name}")
    task = info.task(Conditioning(task=body.task))
    for name in task.needs:
        if name not in given:
            message = f"{PARAM}.{name}: the task {body.task!r} needs it"
            raise ApiError(422, "missing_field", message, param=f"{PARAM}.{name}")
    return task


def read_conditioning(
    body: ConditioningBody, read_image: Callable[[str, str], NDArray[np.uint8]]
) -> Conditioning:
    """What the engine is told.

    Args:
        body: checked.
        read_image: decodes an image, given its text and the name of its field; takes milliseconds.
    """
    return Conditioning(
        task=body.task,
        prompt=body.prompt,
        negative_prompt=body.negative_prompt,
        goal=None if body.goal is None else read_image(body.goal, f"{PARAM}.goal"),
        fps=body.fps,
        fov=body.fov,
    )


def camera_actions(camera: CameraBody, info: ModelInfo) -> tuple[Any, ...]:
    """A named trajectory as the model's actions, one a frame.

    Raises:
        ApiError, InvalidInput: the model takes no camera, or there is no such trajectory.
    """
    space, param = info.action_space, f"{PARAM}.camera"
    if not isinstance(space, CameraPoseActionSpace):
        raise _not_supported("camera", info)
    if camera.trajectory == FREE:
        if not space.optional:
            message = f"{param}.trajectory: model {info.id!r} needs to know where the camera is"
            raise InvalidInput(message, param=f"{param}.trajectory")
        return space.parse((None,) * camera.frames)
    return trajectory(camera.trajectory, camera.frames, distance=camera.distance, angle=camera.angle)


def conditioning_json(info: ModelInfo) -> dict[str, list[Any]]:
    """What a model can be conditioned on, as the API shows it: every value allowed, or none if any is."""
    fields = {name: list(allowed) for name, allowed in info.conditioning.items()}
    space = info.action_space
    if isinstance(space, CameraPoseActionSpace):
        fields["camera"] = [*TRAJECTORIES, *([FREE] if space.optional else [])]
    return fields


def check_length(frames: int, info: ModelInfo, param: str) -> None:
    """Refuse a number of frames that the model cannot generate.

    Raises:
        ApiError: 422, with the numbers that it can.
    """
    lengths = info.chunk_lengths
    if not lengths or frames in lengths:
        return
    each = f"{_listed(lengths)} frames, one an action"
    if info.observed_frames:
        each += f" (videos of {_listed(length + info.observed_frames for length in lengths)})"
    message = f"{param}: model {info.id!r} generates {each}, not {frames}"
    raise ApiError(422, "unsupported_length", message, param=param)


def _not_supported(name: str, info: ModelInfo) -> InvalidInput:
    known = ", ".join(conditioning_json(info)) or "nothing"
    message = f"{PARAM}.{name}: model {info.id!r} can be conditioned on {known}; leave it out"
    return InvalidInput(message, param=f"{PARAM}.{name}", code="not_supported")


def _listed(numbers: Iterable[int]) -> str:
    *most, last = map(str, numbers)
    return f"{', '.join(most)} or {last}" if most else last
