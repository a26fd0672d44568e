"""The interface between the engine and a world model.

A model holds weights and facts about itself. It keeps nothing per request: contexts, conditions
and latents are values that the engine owns, hands in and drops.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor

from worldcache.core import UNCONDITIONED, ChunkStats, Conditioning, Frames, ModelInfo, Observation
from worldcache.decoded import Decoded
from worldcache.errors import InvalidInput
from worldcache.models.transfer import to_device
from worldcache.policies.base import Policy, TokenLayout
from worldcache.sampler import Sampler


@dataclass(frozen=True)
class Row:
    """One line of a backbone batch.

    Attributes:
        latent: the noisy latent of one chunk, without a batch dimension.
        timestep: its own timestep, as the scheduler counts them.
        condition: what :meth:`WorldModel.condition` returned for the chunk.
        unconditional: True for guidance's second branch.
    """

    latent: Tensor
    timestep: float
    condition: Any
    unconditional: bool = False


class TokenView(ABC):
    """Latents and outputs of one shape as tokens, and back.

    Attributes:
        layout: the tokens of one branch.
        width: numbers in a token, d.
        grids: where they lie, ``[T, h, w]`` by modality, in token order; empty if they form no grid.
    """

    layout: TokenLayout
    width: int
    grids: Mapping[str, tuple[int, int, int]] = MappingProxyType({})

    @abstractmethod
    def to_tokens(self, output: Tensor) -> Tensor:
        """``[B, *latent.shape]`` as tokens ``[B * N, d]``, the modalities padded to one width."""

    @abstractmethod
    def from_tokens(self, tokens: Tensor) -> Tensor:
        """Inverse of :meth:`to_tokens`."""


@dataclass(frozen=True)
class ChunkTask:
    """One chunk to denoise.

    Attributes:
        policy: decides which steps are computed, and predicts the others.
        condition: what the model's ``condition`` returned for the chunk.
        frames: that the chunk generates.
        num_steps: denoise steps.
        guidance_scale: 1 evaluates one row a step, anything else two (with and without what it is guided
            by), as much as the model's ``guidance`` makes of it in each step.
        generator: CPU generator of the chunk; draws the initial latent, then whatever the sampler draws.
    """

    policy: Policy[Any, Any]
    condition: Any
    frames: int
    num_steps: int
    guidance_scale: float
    generator: torch.Generator


class Denoiser(Protocol):
    """Denoises one chunk of one rollout.

    It never calls the backbone: it says which rows it needs and takes their outputs, in two halves, so that
    the engine can read the evidence of all its rollouts at once.
    """

    @property
    def frames(self) -> int:
        """Frames that the chunk generates."""

    @property
    def latent(self) -> Tensor:
        """The latent after the steps so far."""

    @property
    def done(self) -> bool:
        """Whether no step is left."""

    def rows(self) -> list[Row]:
        """The backbone rows that the current step needs."""

    def take(self, tokens: Tensor) -> Tensor:
        """First half of a FULL step: learn from the rows' outputs as tokens, one row after the other.

        Returns:
            Evidence for :meth:`advance`, float32 on the device.
        """

    def advance(self, evidence: Sequence[float]) -> None:
        """Second half: go on to the next step that must be computed, or to the end."""

    def stats(self, index: int) -> ChunkStats:
        """How the chunk went; may read the device."""

    def close(self) -> None:
        """Let go of whatever it holds; called once, when nothing more is asked of it."""


class WorldModel(ABC):
    """A diffusion world model that generates frames chunk by chunk.

    Shapes: a latent is whatever the model denoises, one chunk without a batch dimension, float32 on
    the model's device. Its shape follows from the chunk's length alone.

    Attributes:
        offers_modulated_input: whether :meth:`modulated_input` is implemented.
        goes_on_from_frames: whether :meth:`condition` looks at the frames of the chunk before. A rollout
            then waits for them between two chunks, while the engine goes on with the others.
    """

    info: ModelInfo
    device: torch.device
    offers_modulated_input: ClassVar[bool] = False
    goes_on_from_frames: ClassVar[bool] = False

    @abstractmethod
    def begin(self, observation: Observation, conditioning: Conditioning = UNCONDITIONED) -> Any:
        """The context that the first chunk is conditioned on.

        Raises:
            InvalidInput: they do not fit the model or each other; ``param`` names the field.
        """

    @abstractmethod
    def condition(self, context: Any, actions: Sequence[Any], generator: torch.Generator) -> Any:
        """What the backbone needs to know for the next chunk; ``actions`` has one entry a frame.

        Whatever it draws comes from ``generator``, on the CPU.
        """

    @abstractmethod
    def latent_shape(self, frames: int) -> tuple[int, ...]:
        """The shape of the latent of a chunk that generates so many frames."""

    def initial_latent(self, condition: Any, frames: int, generator: torch.Generator) -> Tensor:
        """What a chunk is denoised from: noise, drawn on the CPU.

        Args:
            condition: what :meth:`condition` returned, which has drawn before.
            frames: that the chunk generates.
            generator: the chunk's.
        """
        return to_device(torch.randn(self.latent_shape(frames), generator=generator), self.device)

    @abstractmethod
    def sampler(self, num_steps: int) -> Sampler:
        """A fresh sampler for one chunk."""

    def own_denoiser(self, task: ChunkTask) -> Denoiser | None:
        """What denoises a chunk, for a model that brings its own loop; ``None`` for the engine's.

        It is made on the engine's thread, as soon as the chunk is begun.
        """
        return None

    def guidance(self, scale: float, sampler: Sampler) -> tuple[float, ...]:
        """How much each step is guided, if the request says ``scale``."""
        return (scale,) * len(sampler.timesteps)

    def batch_key(self, row: Row) -> Hashable:
        """Rows with equal keys may share a backbone call."""
        return (self.info.id, tuple(row.latent.shape), row.latent.dtype)

    @abstractmethod
    def evaluate(self, rows: Sequence[Row]) -> Tensor:
        """The backbone's output for each row, float32 ``[len(rows), *latent.shape]``.

        It is what the scheduler consumes (velocity or v-prediction), before guidance.
        """

    def modulated_input(self, row: Row) -> Tensor:
        """What the backbone's first block attends to for ``row``, modulated by timestep and conditions.

        Float32 of any shape without a batch dimension; TeaCache decides by its changes.

        Raises:
            InvalidInput: the model does not offer it.
        """
        raise InvalidInput(
            f"model {self.info.id!r} offers no modulated input; choose a policy that needs none",
            param="cache.policy",
            code="not_supported",
        )

    @abstractmethod
    def tokens(self, shape: Sequence[int]) -> TokenView:
        """Latents of a shape as tokens; cheap, and the same for equal shapes."""

    @abstractmethod
    def render(self, latent: Tensor) -> dict[str, Tensor]:
        """The pictures of a finished chunk by modality, before they are rounded to frames.

        float32 ``[F, H, W]``, or ``[F, H, W, channels]`` if there are several, on the host; 0 to 1
        stands for 0 to the modality's ``high``. The observed frames come first.
        """

    @abstractmethod
    def decode(self, latent: Tensor) -> Frames:
        """The frames of a finished chunk, on the host, in the modalities' units; the observed ones first."""

    @abstractmethod
    def advance(self, context: Any, latent: Tensor, decoded: Decoded, actions: Sequence[Any]) -> Any:
        """The context of the chunk after this one; ``context`` itself stays as it is.

        What only a next chunk needs is better left to its :meth:`condition`: ``decoded`` is the frames of
        ``latent``, and whoever asks for its last one here waits until all of them are decoded. See
        :attr:`goes_on_from_frames`.
        """

    def export_context(self, context: Any) -> dict[str, NDArray[Any]]:
        """A context as arrays on the host, from which :meth:`import_context` makes an equal one.

        Raises:
            InvalidInput: the model does not offer it.
        """
        raise self._keeps_no_contexts()

    def import_context(self, arrays: Mapping[str, NDArray[Any]]) -> Any:
        """The context that was exported as ``arrays``, which may come from anybody.

        Raises:
            InvalidInput: they are no context of this model; ``param`` names the array at fault.
        """
        raise self._keeps_no_contexts()

    def _keeps_no_contexts(self) -> InvalidInput:
        message = f"model {self.info.id!r} cannot write its contexts down; keep the session open instead"
        return InvalidInput(message, param="model", code="not_supported")

    @property
    @abstractmethod
    def memory_bytes(self) -> int:
        """Bytes of the weights."""

    def optimise(self, *, compile: bool = False, cuda_graphs: bool = False, max_batch: int = 8) -> None:
        """Choose how the backbone is run from now on; before :meth:`warm`, and not while it runs.

        Args:
            compile: through ``torch.compile``.
            cuda_graphs: through CUDA graphs, one for each of a few batch sizes.
            max_batch: most rows of one call.

        Raises:
            InvalidInput: the model or its device does not support it.
        """
        if compile or cuda_graphs:
            raise InvalidInput(
                f"model {self.info.id!r} supports neither compile nor cuda_graphs; leave them off",
                param="compile" if compile else "cuda_graphs",
                code="not_supported",
            )

    def warm(self) -> None:  # noqa: B027 (a model may have nothing to warm)
        """Run whatever is slow the first time, so that the first request is not."""
