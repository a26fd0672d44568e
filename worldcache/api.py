"""The library in one call: load a model, roll it out, look at the frames. No server needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from worldcache.core import (
    ChunkFinished,
    Frames,
    ModelInfo,
    Observation,
    RolloutEnded,
    RolloutEvent,
    RolloutStats,
)
from worldcache.engine.engine import Engine
from worldcache.engine.rollout import Rollout, RolloutRequest
from worldcache.errors import InvalidInput
from worldcache.models.base import WorldModel
from worldcache.policies.choose import choose_policy, is_preset
from worldcache.policies.registry import AnyPolicy, policy_names


@dataclass(frozen=True)
class RolloutResult:
    """A finished rollout.

    Attributes:
        frames: by modality, ``rgb`` uint8 ``[F, H, W, 3]`` and ``depth`` float32 ``[F, H, W]``.
        stats: steps, decisions and times.
    """

    frames: Frames
    stats: RolloutStats


def rollout(
    model: WorldModel,
    *,
    actions: Sequence[object],
    start: str | None = None,
    observation: Observation | None = None,
    policy: str | AnyPolicy | None = None,
    seed: int = 0,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    on_chunk: Callable[[ChunkFinished], None] | None = None,
    **policy_parameters: object,
) -> RolloutResult:
    """Generate one frame per action.

    Args:
        model: a loaded model.
        actions: names or indices of the model's action space.
        start: name of one of the model's starts; its first one if no observation is given either.
        observation: frames to start from instead.
        policy: name of a policy or of one of the model's presets; the default preset if left out.
        seed: of all randomness.
        num_inference_steps: denoise steps per chunk; the model's default if left out.
        guidance_scale: 1 for none; the model's default if left out.
        on_chunk: told of every chunk as it is decoded.
        policy_parameters: parameters of the policy.

    Raises:
        InvalidInput: a value cannot be used.
        RolloutFailed: the model failed.
    """
    if not actions:
        raise InvalidInput("give at least one action", param="actions")
    info = model.info
    steps = info.num_inference_steps if num_inference_steps is None else num_inference_steps
    if not 1 <= steps <= info.max_inference_steps:
        raise InvalidInput(f"from 1 to {info.max_inference_steps} steps", param="num_inference_steps")
    if observation is None:
        observation = Observation(start=start or info.starts[0])
    request = RolloutRequest(
        observation=observation,
        actions=info.action_space.parse(actions),
        policy=_choose(policy, policy_parameters, info),
        seed=seed,
        num_inference_steps=steps,
        guidance_scale=info.guidance_scale if guidance_scale is None else guidance_scale,
    )
    chunks: list[ChunkFinished] = []
    ended: list[RolloutEnded] = []

    def listen(event: RolloutEvent) -> None:
        if isinstance(event, ChunkFinished):
            chunks.append(event)
            if on_chunk:
                on_chunk(event)
        elif isinstance(event, RolloutEnded):
            ended.append(event)

    engine = Engine()
    engine.submit(Rollout(model, request, listen))
    while not engine.idle:
        engine.tick()
    if ended[0].error is not None:
        raise ended[0].error
    frames = {m.name: np.concatenate([chunk.frames[m.name] for chunk in chunks]) for m in info.modalities}
    return RolloutResult(frames, ended[0].stats)


def _choose(policy: str | AnyPolicy | None, parameters: Mapping[str, object], info: ModelInfo) -> AnyPolicy:
    """The policy of a call; a name that a preset and a policy share is the preset's without parameters."""
    if policy is not None and not isinstance(policy, str):
        return policy
    if policy is None or is_preset(policy, info):
        if not parameters:
            return choose_policy(policy, info)
        if policy not in policy_names():
            raise InvalidInput("parameters need the name of a policy, not of a preset", param="cache")
    return choose_policy({**parameters, "policy": policy}, info)
