"""A model's description as Gymnasium's spaces."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import Space
from gymnasium.spaces import Box, Dict, Discrete
from numpy.typing import NDArray

from worldcache.client.errors import InvalidInput
from worldcache.client.types import ActionSpace, ModelDescription

NOOP = "NOOP"


def observation_space(model: ModelDescription, modalities: tuple[str, ...]) -> Space[Any]:
    """``rgb`` as uint8 ``[H, W, 3]``; with ``depth``, a dict of both, depth float32 ``[H, W]``.

    Raises:
        InvalidInput: the model has no such modality.
    """
    assert model.resolution is not None
    size, highs = (model.resolution.height, model.resolution.width), modality_highs(model)
    for name in modalities:
        if name not in highs:
            raise InvalidInput(f"model {model.id!r} has no {name}, only {', '.join(highs)}")
    rgb: Space[Any] = Box(0, 255, (*size, 3), np.uint8)
    if "depth" not in modalities:
        return rgb
    return Dict({"rgb": rgb, "depth": Box(0.0, highs["depth"], size, np.float32)})


def modality_highs(model: ModelDescription) -> dict[str, float]:
    """The largest value to expect of each modality."""
    assert model.modalities is not None
    return {modality.name: modality.high for modality in model.modalities}


def action_space(model: ModelDescription) -> Space[Any]:
    """``Discrete`` or ``Box``.

    Raises:
        InvalidInput: the model's actions are neither.
    """
    space = model.action_space
    assert space is not None
    if space.type == "discrete" and space.names:
        return Discrete(len(space.names))
    if space.type == "box" and space.shape is not None:
        return Box(_bound(space.low, -np.inf, space), _bound(space.high, np.inf, space), dtype=np.float32)
    raise InvalidInput(f"model {model.id!r} takes actions of type {space.type!r}: no environment has those")


def encode_action(space: Space[Any], action: Any) -> Any:
    """An action as it is sent.

    Raises:
        InvalidInput: it is outside the space.
    """
    given = np.asarray(action)
    try:
        value = given.astype(space.dtype, casting="same_kind")
    except TypeError:
        raise InvalidInput(f"action {action!r} is not in {space}") from None
    if not space.contains(value if isinstance(space, Box) else value[()]):
        raise InvalidInput(f"action {action!r} is not in {space}")
    return value.tolist()


def default_reset_action(model: ModelDescription, space: Space[Any]) -> Any:
    """``NOOP`` or else the first action; of a box, the one nearest to zero."""
    if isinstance(space, Box):
        return np.clip(np.zeros(space.shape, np.float32), space.low, space.high)
    assert model.action_space is not None and model.action_space.names is not None
    names = model.action_space.names
    return names.index(NOOP) if NOOP in names else 0


def _bound(value: Any, missing: float, space: ActionSpace) -> NDArray[np.float32]:
    """A bound that may be missing or one number for all."""
    assert space.shape is not None
    bound = np.asarray(missing if value is None else value, np.float32)
    return np.broadcast_to(bound, space.shape)
