"""What callers ask for, as JSON."""

from __future__ import annotations

import base64
import builtins
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from worldcache.client import InvalidInput, PillowMissing
from worldcache.client.body import encode_rollout

RGB = np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3)


def encoded(**changes: Any) -> dict[str, Any]:
    fields: Any = {"model": "toy", "start": "centre", "actions": [0], **changes}
    answer: dict[str, Any] = json.loads(encode_rollout(fields))
    return answer


def picture(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def test_what_is_left_out_is_the_servers_choice() -> None:
    body = encoded(seed=None, cache=None, output="npz", metadata={"run": "1"})
    assert body == {
        "model": "toy",
        "observation": {"start": "centre"},
        "actions": [0],
        "output": {"format": "npz"},
        "metadata": {"run": "1"},
    }
    assert encoded(start=None, observation={"start": "left"})["observation"] == {"start": "left"}
    assert encoded(output={"format": "png", "fps": 3})["output"] == {"format": "png", "fps": 3}


def test_actions_may_be_arrays() -> None:
    assert encoded(actions=np.eye(2))["actions"] == [[1.0, 0.0], [0.0, 1.0]]
    assert encoded(actions=[np.int64(3), "LEFT", np.ones(2, np.float32)])["actions"] == [
        3,
        "LEFT",
        [1.0, 1.0],
    ]


@pytest.mark.parametrize("frames", [RGB, list(RGB)])
def test_frames_become_png(frames: Any) -> None:
    texts = encoded(start=None, frames=frames)["observation"]["frames"]
    assert np.array_equal([picture(text) for text in texts], RGB)


def test_one_frame_needs_no_list(tmp_path: Path) -> None:
    def sent(frame: Any) -> list[str]:
        frames: list[str] = encoded(start=None, frames=frame)["observation"]["frames"]
        return frames

    (text,) = sent(RGB[0])
    path = tmp_path / "frame.png"
    path.write_bytes(base64.b64decode(text))
    assert sent(path) == sent(path.read_bytes()) == sent(text) == [text]
    assert sent(RGB[0, :, ::-1]) != [text]
    assert sent(["data:image/png;base64,x", path]) == ["data:image/png;base64,x", text]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint16])
def test_depth_becomes_npy(dtype: Any) -> None:
    depth = np.arange(24).reshape(2, 3, 4).astype(dtype)
    observation = encoded(start=None, frames=RGB, depth=depth)["observation"]
    arrays = [np.load(io.BytesIO(base64.b64decode(text))) for text in observation["depth"]]
    assert {array.dtype for array in arrays} == {np.dtype(np.float32)}
    assert np.array_equal(arrays, depth)
    assert len(encoded(start=None, frames=RGB[0], depth=depth[0])["observation"]["depth"]) == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"start": None}, "one of observation, start and frames, not none"),
        ({"frames": RGB}, "start and frames"),
        ({"depth": RGB[..., 0]}, "depth needs frames"),
        ({"start": None, "frames": RGB / 255}, "uint8 [H, W, 3], not float64"),
        ({"start": None, "frames": RGB[..., 0]}, "uint8 [H, W, 3], not uint8 [2, 3, 4]"),
        ({"start": None, "frames": RGB, "depth": RGB}, "numbers [H, W], not uint8 [3, 4, 3]"),
        ({"start": None, "frames": [5]}, "not int"),
        ({"actions": [float("nan")]}, "JSON"),
        ({"actions": [object()]}, "object is neither"),
    ],
)
def test_what_cannot_be_sent_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        encoded(**changes)
    assert words in str(caught.value)


def test_fields_are_checked_by_name() -> None:
    with pytest.raises(TypeError, match="no speed"):
        encoded(speed=3)
    with pytest.raises(TypeError, match="give model"):
        encode_rollout({"start": "centre"})  # type: ignore[typeddict-item]


def test_arrays_need_pillow_and_files_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    importing = builtins.__import__

    def without_pillow(name: str, *arguments: Any) -> Any:
        if name.startswith("PIL"):
            raise ImportError(name)
        return importing(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without_pillow)
    with pytest.raises(PillowMissing, match="pip install 'worldcache"):
        encoded(start=None, frames=RGB)
    assert encoded(start=None, frames=b"abc")["observation"]["frames"] == ["YWJj"]
