"""Descriptions of models as spaces, and actions as they are sent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from worldcache.actions import BoxActionSpace
from worldcache.client import InvalidInput, ModelDescription
from worldcache.client.gym import spaces
from worldcache.errors import InvalidInput as ServerInvalidInput


def model(action_space: dict[str, Any], *modalities: str) -> ModelDescription:
    """With 2 x 3 pixels and depth up to 5."""
    return ModelDescription.model_validate(
        {
            "id": "small",
            "status": "warm",
            "action_space": action_space,
            "modalities": [{"name": name, "channels": 1, "unit": "m", "high": 5} for name in modalities],
            "resolution": {"height": 2, "width": 3},
        }
    )


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-1, 2.5, Box(-1, 2.5, (2,), np.float32)),
        ([0, -3], [1, 3], Box(np.float32([0, -3]), np.float32([1, 3]))),
        (None, None, Box(-np.inf, np.inf, (2,), np.float32)),
    ],
)
def test_a_box(low: Any, high: Any, expected: Box) -> None:
    assert spaces.action_space(model({"type": "box", "shape": [2], "low": low, "high": high})) == expected


def test_the_ends_of_a_box_are_actions_of_the_model() -> None:
    """Gymnasium's boxes are float32: their ends may lie a rounding outside the model's."""
    own = BoxActionSpace(low=(-0.1, 0.1), high=(0.1, 0.7), names=("forward", "turn"))
    box = spaces.action_space(model(own.describe()))
    sent = [spaces.encode_action(box, end) for end in (box.low, box.high)]
    assert float(sent[1][0]) > 0.1, "a rounding outside"
    low, high = own.parse(sent)
    assert low == pytest.approx((-0.1, 0.1)) and high == pytest.approx((0.1, 0.7))
    assert low[0] == -0.1 and high[0] == 0.1, "what lies outside is brought back"
    with pytest.raises(ServerInvalidInput, match=r"forward must be -0\.1 to 0\.1"):
        own.parse([[0.10001, 0.5]])


def test_actions_that_no_space_has_are_refused() -> None:
    with pytest.raises(InvalidInput, match="camera_pose"):
        spaces.action_space(model({"type": "camera_pose"}))


def test_modalities_that_a_model_lacks_are_named() -> None:
    with pytest.raises(InvalidInput, match="'small' has no depth, only rgb"):
        spaces.observation_space(model({"type": "camera_pose"}, "rgb"), ("rgb", "depth"))


def test_the_first_action_is_the_one_that_does_least() -> None:
    named = {"type": "discrete", "names": ["JUMP", "NOOP"]}
    assert spaces.default_reset_action(model(named), Discrete(2)) == 1
    assert spaces.default_reset_action(model({**named, "names": ["JUMP", "RUN"]}), Discrete(2)) == 0
    box = Box(np.float32([-1, 2]), np.float32([1, 3]))
    assert spaces.default_reset_action(model({"type": "box"}), box).tolist() == [0.0, 2.0]


def test_actions_of_a_box_may_be_doubles_but_not_outside() -> None:
    box = Box(-1, 1, (2,), np.float32)
    for given in (np.array([0.5, -1.0]), np.float32([0.5, -1.0]), [0.5, -1]):
        assert spaces.encode_action(box, given) == [0.5, -1.0]
    for given in ([0.5], [0.5, 1.5], [0.5, np.nan], 0.5, "left", [1j, 0]):
        with pytest.raises(InvalidInput, match="is not in Box"):
            spaces.encode_action(box, given)
