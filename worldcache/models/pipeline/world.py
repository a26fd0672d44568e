"""Any image-to-video pipeline of diffusers as a :class:`WorldModel`.

A pipeline has no actions: an action stands for a frame, and says nothing else. It is conditioned on a
picture and on prompts, and the next chunk on the last frame of the one before. Its own call makes each
chunk (``denoiser.py``); the engine evaluates nothing but its transformer.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import fields, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from huggingface_hub import hf_hub_download
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from worldcache.core import UNCONDITIONED, Conditioning, Frames, Observation
from worldcache.decoded import Decoded
from worldcache.errors import InvalidInput, ModelLoadError, UnknownName
from worldcache.models.base import ChunkTask, Denoiser, Row, TokenView, WorldModel
from worldcache.models.pipeline.context import PipelineContext, read_context, write_context
from worldcache.models.pipeline.copies import TransformerCall, bring_home, copy_for_call, make_now
from worldcache.models.pipeline.denoiser import MODALITY, PipelineDenoiser, read_frames
from worldcache.models.pipeline.facts import CARD, PipelineFacts, read_facts
from worldcache.policies.base import TokenLayout
from worldcache.sampler import Sampler

logger = logging.getLogger(__name__)

WARM_STEPS = 2
"""Of the smallest video, which is made before the first request."""


class OneToken(TokenView):
    """A tensor as a single token: what is made of a pipeline's tokens is made where its cache is."""

    def __init__(self, shape: Sequence[int]) -> None:
        self._shape = tuple(shape)
        self.layout, self.width = TokenLayout((MODALITY,), (1,)), prod(shape)

    def to_tokens(self, output: Tensor) -> Tensor:
        return output.reshape(-1, self.width)

    def from_tokens(self, tokens: Tensor) -> Tensor:
        return tokens.reshape(-1, *self._shape)


class PipelineWorldModel(WorldModel):
    """A diffusers pipeline that makes a video of a picture.

    Args:
        pipe: the pipeline, on its device.
        facts: of the pipeline.
        device: of the pipeline; where it computes, if it is offloaded.

    Attributes:
        pipe: the pipeline; every chunk is made by a copy of it.
    """

    def __init__(self, pipe: Any, facts: PipelineFacts, *, device: torch.device) -> None:
        pipe.set_progress_bar_config(disable=True)
        for part in _modules(pipe):
            part.eval().requires_grad_(False)
        self.pipe, self._facts, self.device, self.info = pipe, facts, device, facts.info

    @classmethod
    def load(
        cls, path: str | Path | None, *, device: torch.device, dtype: torch.dtype, offload: bool = False
    ) -> PipelineWorldModel:
        """Load a pipeline as ``save_pretrained`` writes it.

        Args:
            path: its folder, or its id on the hub, from where it is fetched once.
            device: where it computes.
            dtype: of all its models.
            offload: keep those that do not run on the host; means nothing on a CPU.

        Raises:
            ModelLoadError: there is no such pipeline, it cannot be loaded, or it is of no kind that can be
                served.
        """
        if path is None:
            raise ModelLoadError("name the pipeline: its folder, or its id on the hub, as diffusers:ID")
        name, folder = str(path), _find_folder(str(path))
        try:
            pipe = DiffusionPipeline.from_pretrained(folder, dtype=dtype)
        except Exception as error:
            raise ModelLoadError(f"the pipeline {name} cannot be loaded: {error}") from error
        facts = read_facts(pipe, Path(name).name if Path(name).is_dir() else name, folder)
        if not offload or device.type == "cpu":
            return cls(pipe.to(device), facts, device=device)
        try:
            pipe.enable_model_cpu_offload(device=device)
        except (ImportError, ValueError, RuntimeError) as error:
            raise ModelLoadError(f"the pipeline {name} cannot be offloaded: {error}") from error
        return cls(pipe, facts, device=device)

    def begin(self, observation: Observation, conditioning: Conditioning = UNCONDITIONED) -> PipelineContext:
        if observation.start is not None:
            raise UnknownName("start", observation.start, self.info.starts, param="observation.start")
        if observation.frames is None or not len(observation.frames):
            raise InvalidInput("give a frame to start from", param="observation.frames")
        if observation.depth is not None:
            raise InvalidInput("the model takes no depth; leave it out", param="observation.depth")
        image = observation.frames[-1]
        if image.shape != (*self.info.resolution, 3):
            raise InvalidInput(
                f"frames must be {self.info.resolution[0]}x{self.info.resolution[1]} pixels high and wide",
                param="observation.frames",
            )
        for given in fields(conditioning):
            if given.name not in self.info.conditioning and getattr(conditioning, given.name) is not None:
                raise InvalidInput(
                    f"the model cannot be conditioned on {given.name}; leave it out",
                    param=f"conditioning.{given.name}",
                )
        return PipelineContext(image.copy(), conditioning.prompt, conditioning.negative_prompt)

    def condition(
        self, context: PipelineContext, actions: Sequence[int], generator: torch.Generator
    ) -> PipelineContext:
        return context

    def latent_shape(self, frames: int) -> tuple[int, ...]:
        return self._facts.latent_shape(frames)

    def sampler(self, num_steps: int) -> Sampler:
        """Not offered: a pipeline steps its own scheduler.

        Raises:
            InvalidInput: always.
        """
        raise InvalidInput(
            f"model {self.info.id!r} is a pipeline, which steps its own scheduler; let the engine run it",
            param="model",
            code="not_supported",
        )

    def own_denoiser(self, task: ChunkTask) -> Denoiser:
        bring_home(self.pipe)
        arguments = self._arguments(
            task.condition, task.frames, task.num_steps, task.guidance_scale, task.generator
        )
        return PipelineDenoiser(self.pipe, task.policy, arguments, task.frames, self.device)

    def _arguments(
        self,
        context: PipelineContext,
        frames: int,
        num_steps: int,
        guidance_scale: float,
        generator: torch.Generator,
    ) -> dict[str, Any]:
        """What the pipeline is called with, as far as its call takes it."""
        height, width = self.info.resolution
        arguments = {
            "image": Image.fromarray(context.image),
            "prompt": context.prompt or "",
            "height": height,
            "width": width,
            "num_frames": frames,
            "num_inference_steps": num_steps,
            "guidance_scale": guidance_scale,
            "generator": generator,
            "output_type": "np",
        }
        if context.negative_prompt is not None:
            arguments["negative_prompt"] = context.negative_prompt
        return {name: value for name, value in arguments.items() if name in self._facts.arguments}

    def batch_key(self, row: Row) -> Hashable:
        """A call of its own: what a pipeline's transformer is called with is the pipeline's business."""
        call: TransformerCall = row.condition
        return call

    def evaluate(self, rows: Sequence[Row]) -> Tensor:
        """Make the calls that the rows stand for; their outputs stay with them.

        Returns:
            float32 ``[len(rows), 1]``: 1 where the output is finite, 0 where not.
        """
        with torch.inference_mode(False), torch.no_grad():  # as in the pipeline's own thread
            return torch.stack([row.condition.make() for row in rows])

    def tokens(self, shape: Sequence[int]) -> TokenView:
        return OneToken(shape)

    def render(self, latent: Tensor) -> dict[str, Tensor]:
        return {MODALITY: latent}

    def decode(self, latent: Tensor) -> Frames:
        return {MODALITY: (latent * 255.0).round().to(torch.uint8).numpy()}

    def advance(
        self, context: PipelineContext, latent: Tensor, decoded: Decoded, actions: Sequence[int]
    ) -> PipelineContext:
        """The last frame, as a client would send it back."""
        return replace(context, image=self.decode(latent[-1:])[MODALITY][0])

    def export_context(self, context: PipelineContext) -> dict[str, NDArray[Any]]:
        return write_context(context)

    def import_context(self, arrays: Mapping[str, NDArray[Any]]) -> PipelineContext:
        return read_context(arrays, self.info.resolution)

    @property
    def memory_bytes(self) -> int:
        weights = {id(weight): weight for part in _modules(self.pipe) for weight in part.parameters()}
        return sum(weight.numel() * weight.element_size() for weight in weights.values())

    def warm(self) -> None:
        """Make the smallest video.

        Raises:
            ModelLoadError: the pipeline fails at it.
        """
        context = PipelineContext(np.full((*self.info.resolution, 3), 127, np.uint8))
        generator = torch.Generator().manual_seed(0)
        frames = self.info.chunk_lengths[0]
        arguments = self._arguments(context, frames, WARM_STEPS, self.info.guidance_scale, generator)
        bring_home(self.pipe)
        try:
            with torch.no_grad():
                read_frames(copy_for_call(self.pipe, make_now)(**arguments)[0], frames)
        except Exception as error:
            raise ModelLoadError(f"the pipeline cannot make a video: {error!r}") from error


def _modules(pipe: Any) -> list[nn.Module]:
    return [part for part in pipe.components.values() if isinstance(part, nn.Module)]


def _find_folder(name: str) -> Path:
    """The folder of a pipeline, fetched from the hub if there is none on this machine.

    Raises:
        ModelLoadError: there is neither.
    """
    if Path(name).is_dir():
        return Path(name)
    if Path(name).is_absolute() or name.startswith(".") or name.count("/") > 1:
        raise ModelLoadError(f"the folder {name} does not exist")
    try:
        folder = Path(DiffusionPipeline.download(name))
    except Exception as error:
        raise ModelLoadError(
            f"{name} is neither a folder nor a pipeline that the hub gives out: {error}"
        ) from error
    try:
        hf_hub_download(name, CARD)  # which says the licence, and comes into the same folder
    except (OSError, ValueError) as error:
        logger.info("%s has no model card here: %s", name, error)
    return folder
