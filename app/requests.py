"""From what a client sent to what the engine runs: every limit is checked before anything is decoded."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from anyio import to_thread

from app.conditioning import camera_actions, check_conditioning, check_length, read_conditioning
from app.errors import ApiError
from app.observations import read_image, read_observation
from app.schemas import ConditioningBody, ObservationBody, RolloutBody, TermsBody
from app.settings import Settings
from worldcache.actions import CameraPoseActionSpace
from worldcache.core import Conditioning, ModelInfo, Observation
from worldcache.engine.rollout import Priority, RolloutRequest
from worldcache.errors import UnknownName
from worldcache.policies.choose import choose_policy
from worldcache.policies.registry import AnyPolicy


@dataclass(frozen=True)
class Terms:
    """How to generate, whatever it starts from: fields of :class:`RolloutRequest`."""

    policy: AnyPolicy
    seed: int
    num_inference_steps: int
    guidance_scale: float


class RequestReader:
    """Turns bodies into the engine's requests.

    Args:
        settings: hold the limits.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def read(self, body: RolloutBody, info: ModelInfo, client: str) -> RolloutRequest:
        """The engine's request.

        Args:
            body: what was sent.
            info: of the model that is asked.
            client: whose it is; the line is fair between clients.

        Raises:
            ApiError, InvalidInput: the message names the field at fault.
        """
        terms = self.read_terms(body, info)
        check_modalities(body.output.modalities, info)
        check_start(body.observation, info)
        actions = self._read_actions(body, info)
        return RolloutRequest(
            await self.read_observation(body.observation, info),
            actions,
            terms.policy,
            terms.seed,
            terms.num_inference_steps,
            terms.guidance_scale,
            client=client,
            priority=Priority[body.priority.upper()],
            conditioning=await self.read_conditioning(body.conditioning, info),
        )

    def _read_actions(self, body: RolloutBody, info: ModelInfo) -> tuple[Any, ...]:
        """The actions, or those that a named trajectory stands for."""
        camera = body.conditioning.camera
        if camera is None and body.actions is None:
            message = "actions: they are missing"
            if isinstance(info.action_space, CameraPoseActionSpace):
                message += "; give them, or conditioning.camera"
            raise ApiError(422, "missing_field", message, param="actions")
        if camera is not None and body.actions is not None:
            message = "actions: give either them or conditioning.camera"
            raise ApiError(422, "invalid_value", message, param="actions")
        if camera is not None:
            param = "conditioning.camera.frames"
            self.check_horizon(camera.frames, param)
            check_length(camera.frames, info, param)
            return camera_actions(camera, info)
        assert body.actions is not None
        self.check_horizon(len(body.actions), "actions")
        check_length(len(body.actions), info, "actions")
        return info.action_space.parse(body.actions)

    def check_horizon(self, frames: int, param: str) -> None:
        """Refuse more frames than one rollout may have."""
        most = self._settings.max_frames
        if frames > most:
            raise ApiError(422, "too_many_frames", f"at most {most} actions, one a frame", param=param)

    def read_terms(self, body: TermsBody, info: ModelInfo) -> Terms:
        """The terms of a request, completed by the model's defaults; a seed is drawn if there is none.

        Raises:
            ApiError, InvalidInput: the message names the field at fault.
        """
        settings = self._settings
        task = check_conditioning(body.conditioning, info)
        steps = task.num_inference_steps if body.num_inference_steps is None else body.num_inference_steps
        most_steps = min(settings.max_inference_steps, info.max_inference_steps)
        guidance = task.guidance_scale if body.guidance_scale is None else body.guidance_scale
        if steps > most_steps:
            raise ApiError(422, "too_many_steps", f"at most {most_steps} steps", param="num_inference_steps")
        if guidance > settings.max_guidance_scale:
            message = f"at most {settings.max_guidance_scale}"
            raise ApiError(422, "invalid_value", message, param="guidance_scale")
        seed = secrets.randbits(63) if body.seed is None else body.seed
        return Terms(choose_policy(body.cache, info), seed, steps, guidance)

    async def read_observation(self, body: ObservationBody, info: ModelInfo) -> Observation:
        """The observation, decoded.

        Raises:
            ApiError: the message names the image at fault.
        """
        settings = self._settings
        return await to_thread.run_sync(
            lambda: read_observation(
                body, info, max_bytes=settings.max_image_bytes, max_pixels=settings.max_image_pixels
            )
        )

    async def read_conditioning(self, body: ConditioningBody, info: ModelInfo) -> Conditioning:
        """What a rollout is conditioned on, its images decoded.

        Raises:
            ApiError: the message names the image at fault.
        """
        settings = self._settings
        image = partial(
            read_image,
            info=info,
            max_bytes=settings.max_image_bytes,
            max_pixels=settings.max_image_pixels,
        )
        return await to_thread.run_sync(read_conditioning, body, image)


def check_modalities(names: Sequence[str] | None, info: ModelInfo) -> None:
    """Refuse modalities that the model does not have."""
    for index, name in enumerate(names or ()):
        info.modality(name, param=f"output.modalities.{index}")


def check_start(body: ObservationBody, info: ModelInfo) -> None:
    """Refuse a start that the model does not have."""
    if body.start is not None and body.start not in info.starts:
        raise UnknownName("start", body.start, info.starts, param="observation.start")
