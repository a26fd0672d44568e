"""From what a client sent to what the engine runs: every limit is checked before anything is decoded."""

from __future__ import annotations

import secrets

from anyio import to_thread

from app.errors import ApiError
from app.observations import read_observation
from app.schemas import RolloutBody
from app.settings import Settings
from worldcache.core import ModelInfo
from worldcache.engine.rollout import Priority, RolloutRequest
from worldcache.errors import UnknownName
from worldcache.policies.choose import choose_policy


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
        settings = self._settings
        steps = info.num_inference_steps if body.num_inference_steps is None else body.num_inference_steps
        most_steps = min(settings.max_inference_steps, info.max_inference_steps)
        guidance = info.guidance_scale if body.guidance_scale is None else body.guidance_scale
        if len(body.actions) > settings.max_frames:
            raise ApiError(
                422, "too_many_frames", f"at most {settings.max_frames} actions, one a frame", param="actions"
            )
        if steps > most_steps:
            raise ApiError(422, "too_many_steps", f"at most {most_steps} steps", param="num_inference_steps")
        if guidance > settings.max_guidance_scale:
            message = f"at most {settings.max_guidance_scale}"
            raise ApiError(422, "invalid_value", message, param="guidance_scale")
        for index, name in enumerate(body.output.modalities or ()):
            info.modality(name, param=f"output.modalities.{index}")
        start = body.observation.start
        if start is not None and start not in info.starts:
            raise UnknownName("start", start, info.starts, param="observation.start")
        policy = choose_policy(body.cache, info)
        actions = info.action_space.parse(body.actions)
        observation = await to_thread.run_sync(
            lambda: read_observation(
                body.observation,
                info,
                max_bytes=settings.max_image_bytes,
                max_pixels=settings.max_image_pixels,
            )
        )
        seed = secrets.randbits(63) if body.seed is None else body.seed
        return RolloutRequest(
            observation,
            actions,
            policy,
            seed,
            steps,
            guidance,
            client=client,
            priority=Priority[body.priority.upper()],
        )
