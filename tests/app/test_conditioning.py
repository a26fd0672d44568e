"""Cameras, goals, prompts and lengths over HTTP, on a toy whose frames follow an observed one."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.app.conftest import rollout_body, serving
from tests.toy import SIZE, ToyWorldModel
from worldcache.actions import CameraPoseActionSpace
from worldcache.cameras import TRAJECTORIES
from worldcache.core import UNCONDITIONED, Conditioning, Frames, Modality, Observation, Task
from worldcache.decoded import Decoded

EYE = np.eye(4).tolist()


class CameraToy(ToyWorldModel):
    """4 or 8 frames behind the observed one; notes what it was conditioned on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.seen: list[tuple[Conditioning, int]] = []
        self.steered: list[tuple[Any, ...]] = []
        self.info = replace(
            self.info,
            action_space=CameraPoseActionSpace("metres", optional=True),
            modalities=(*self.info.modalities, Modality("pose", 16, "camera-to-world", 1.0, picture=False)),
            chunk_frames=8,
            chunk_lengths=(4, 8),
            observed_frames=1,
            conditioning={"task": ("predict", "plan"), "goal": (), "fps": (8, 12.5), "prompt": ()},
            tasks={"predict": Task(10, 1.0), "plan": Task(5, 3.0, needs=("goal",))},
        )

    def begin(self, observation: Observation, conditioning: Conditioning = UNCONDITIONED) -> Any:
        self.seen.append((conditioning, 0 if observation.frames is None else len(observation.frames)))
        return super().begin(observation)

    def condition(self, context: Any, actions: Sequence[Any], generator: torch.Generator) -> tuple[int, ...]:
        self.steered.append(tuple(actions))
        return (1,)

    def advance(self, context: Any, latent: Tensor, decoded: Decoded, actions: Sequence[Any]) -> Any:
        return context

    def latent_shape(self, frames: int) -> tuple[int, ...]:
        return (4, frames + 1, *SIZE)

    def decode(self, latent: Tensor) -> Frames:
        frames = super().decode(latent)
        poses = np.tile(np.eye(4, dtype=np.float32), (latent.shape[1], 1, 1))
        poses[:, 0, 3] = np.arange(latent.shape[1])
        return {**frames, "pose": poses}


@pytest.fixture
def model() -> CameraToy:
    return CameraToy()


@pytest.fixture
def client(model: CameraToy) -> Iterator[httpx.Client]:
    with serving(model) as running:
        yield running


def image(size: tuple[int, int], left: int, right: int) -> str:
    """A grey picture with two halves, as base64."""
    pixels = np.full((size[1], size[0], 3), left, np.uint8)
    pixels[:, size[0] // 2 :] = right
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def camera_body(**changes: Any) -> dict[str, Any]:
    body = rollout_body(**{"num_inference_steps": None, "cache": "none", **changes})
    if "camera" in body.get("conditioning", {}):
        del body["actions"]
    elif "actions" not in changes:
        body["actions"] = [None] * 4
    return body


def arrays(client: httpx.Client, rollout: dict[str, Any]) -> dict[str, np.ndarray]:
    return dict(np.load(io.BytesIO(client.get(rollout["artifacts"]["npz"]).content)))


def test_the_observed_frame_comes_first_and_matrices_are_arrays(
    client: httpx.Client, model: CameraToy
) -> None:
    rollout = client.post("/v1/rollouts", json=camera_body(actions=[EYE] * 8)).json()
    assert (rollout["status"], rollout["frames"], rollout["frames_done"]) == ("succeeded", 9, 9)
    assert rollout["stats"]["steps_total"] == 10
    found = arrays(client, rollout)
    assert {name: len(array) for name, array in found.items()} == {"rgb": 9, "depth": 9, "pose": 9}
    assert found["pose"][:, 0, 3].tolist() == list(range(9))
    assert set(rollout["artifacts"]["video"]) == {"rgb", "depth"}
    assert model.steered == [(tuple(map(tuple, EYE)),) * 8]
    refused = client.get(f"/v1/rollouts/{rollout['id']}/frames/0", params={"modality": "pose"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "not_a_picture")


def test_events_carry_matrices(client: httpx.Client) -> None:
    body = camera_body(output={"format": "png", "modalities": ["pose"]}, stream=True)
    text = client.post("/v1/rollouts", json=body).text
    frames = [line for line in text.splitlines() if line.startswith("data:") and '"pose"' in line]
    assert '"pose": [[1.0, 0.0, 0.0, 0.0]' in frames[0]


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_a_named_trajectory_stands_for_its_poses(client: httpx.Client, model: CameraToy, name: str) -> None:
    camera = {"trajectory": name, "frames": 4}
    rollout = client.post("/v1/rollouts", json=camera_body(conditioning={"camera": camera})).json()
    assert rollout["frames"] == 5
    (poses,) = model.steered
    assert len(poses) == 4 and poses[0] != poses[-1]


def test_a_free_camera_is_left_to_the_model(client: httpx.Client, model: CameraToy) -> None:
    camera = {"trajectory": "free", "frames": 8}
    assert client.post("/v1/rollouts", json=camera_body(conditioning={"camera": camera})).status_code == 200
    assert model.steered == [(None,) * 8]


def test_a_goal_is_cut_to_the_models_size_and_chooses_the_tasks_defaults(
    client: httpx.Client, model: CameraToy
) -> None:
    # Twice as wide as the model's frames: the outer quarters are cut away.
    goal = image((256, 96), 0, 255)
    conditioning = {"task": "plan", "goal": goal, "fps": 12.5, "prompt": "a hall"}
    rollout = client.post("/v1/rollouts", json=camera_body(conditioning=conditioning)).json()
    assert rollout["stats"]["steps_total"] == 5
    (seen, _) = model.seen[0]
    assert (seen.task, seen.fps, seen.prompt) == ("plan", 12.5, "a hall")
    assert seen.goal is not None and seen.goal.shape == (*SIZE, 3)
    assert (seen.goal[:, : SIZE[1] // 2] == 0).all() and (seen.goal[:, SIZE[1] // 2 :] == 255).all()


@pytest.mark.parametrize(
    ("changes", "code", "param"),
    [
        ({"actions": [None] * 5}, "unsupported_length", "actions"),
        ({"actions": [None] * 9}, "unsupported_length", "actions"),
        ({"actions": [None, EYE] * 2}, "invalid_value", "actions.0"),
        ({"actions": [[[1, 0], [0, 1]]] * 4}, "invalid_value", "actions.0"),
        ({"conditioning": {"task": "fly"}}, "unknown_task", "conditioning.task"),
        ({"conditioning": {"task": "plan"}}, "missing_field", "conditioning.goal"),
        ({"conditioning": {"fps": 9}}, "unknown_fps", "conditioning.fps"),
        ({"conditioning": {"fov": 90}}, "not_supported", "conditioning.fov"),
        ({"conditioning": {"goal": "?", "task": "plan"}}, "invalid_image", "conditioning.goal"),
        (
            {"conditioning": {"camera": {"trajectory": "spiral", "frames": 4}}},
            "unknown_trajectory",
            "conditioning.camera.trajectory",
        ),
        (
            {"conditioning": {"camera": {"trajectory": "forward", "frames": 5}}},
            "unsupported_length",
            "conditioning.camera.frames",
        ),
        ({"conditioning": {"camera": {"frames": 4}}}, "missing_field", "conditioning.camera.trajectory"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_by_field(
    client: httpx.Client, changes: dict[str, Any], code: str, param: str
) -> None:
    response = client.post("/v1/rollouts", json=camera_body(**changes))
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (422, code, param)


def test_a_refused_length_names_those_that_there_are(client: httpx.Client) -> None:
    error = client.post("/v1/rollouts", json=camera_body(actions=[None] * 6)).json()["error"]
    assert "4 or 8 frames" in error["message"] and "5 or 9" in error["message"]


def test_actions_and_a_camera_exclude_each_other(client: httpx.Client) -> None:
    camera = {"trajectory": "forward", "frames": 4}
    both = {**camera_body(conditioning={"camera": camera}), "actions": [EYE] * 4}
    neither = {name: value for name, value in camera_body().items() if name != "actions"}
    for body in (both, neither):
        assert client.post("/v1/rollouts", json=body).json()["error"]["param"] == "actions"


def test_sessions_go_on_behind_the_observed_frame(client: httpx.Client, model: CameraToy) -> None:
    body = {name: value for name, value in camera_body().items() if name != "actions"}
    session = client.post("/v1/sessions", json={**body, "frames_per_step": 4}).json()
    for index in range(2):
        answer = client.post(f"/v1/sessions/{session['id']}/step", json={"actions": [EYE]}).json()
        assert [frame["index"] for frame in answer["frames"]] == list(range(4 * index, 4 * index + 4))
        assert [frame["pose"][0][3] for frame in answer["frames"]] == [1, 2, 3, 4]
    refused = client.post("/v1/sessions", json={**body, "frames_per_step": 6})
    assert refused.json()["error"]["param"] == "frames_per_step"
    camera = {"trajectory": "forward", "frames": 4}
    refused = client.post("/v1/sessions", json={**body, "conditioning": {"camera": camera}})
    assert refused.json()["error"]["param"] == "conditioning.camera"


def test_videos_have_a_length_that_the_model_has(client: httpx.Client, model: CameraToy) -> None:
    video = client.post("/v1/videos", json={"model": "toy", "seconds": 0.45, "prompt": "a hall"}).json()
    assert video["num_frames"] == 9  # 8 frames at 17.5 a second; 5 and 9 can be had
    video = client.post("/v1/videos", json={"model": "toy", "num_frames": 5}).json()
    assert video["num_frames"] == 5
    refused = client.post("/v1/videos", json={"model": "toy", "num_frames": 7}).json()["error"]
    assert refused["code"] == "unsupported_length"
    assert model.seen[0][0].prompt == "a hall"


def test_a_model_says_what_it_can_be_conditioned_on(client: httpx.Client) -> None:
    described = client.get("/v1/models/toy").json()
    assert described["action_space"]["type"] == "camera_pose"
    assert described["chunk_lengths"] == [4, 8] and described["observed_frames"] == 1
    assert described["conditioning"]["fps"] == [8, 12.5] and described["conditioning"]["goal"] == []
    assert described["conditioning"]["camera"] == [*TRAJECTORIES, "free"]
    assert described["tasks"]["plan"]["needs"] == ["goal"]
    assert [modality["picture"] for modality in described["modalities"]] == [True, True, False]
