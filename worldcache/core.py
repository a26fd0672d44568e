"""The nouns of the system: what a model offers, what a rollout asks for, what comes out.

Plain data only. Nothing here imports torch, a model, a policy or the service.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from worldcache.actions import ActionSpace
from worldcache.errors import UnknownName

Prediction: TypeAlias = Literal["flow", "v", "epsilon"]
"""What a model's outputs y stand for: noise minus data, a velocity that keeps the variance, or noise."""

Frames: TypeAlias = Mapping[str, NDArray[Any]]
"""Decoded frames by modality: ``rgb`` uint8 ``[F, H, W, 3]``, ``depth`` float32 ``[F, H, W]``."""


@dataclass(frozen=True)
class Modality:
    """One kind of picture that a model generates.

    Attributes:
        name: ``rgb``, ``depth``, ...
        channels: channels per pixel.
        unit: what a value means.
        high: largest value that a client should expect; pictures of the modality are scaled by it.
        picture: whether a frame of it is a picture; else it is a matrix, such as a camera pose, and found
            in arrays only.
    """

    name: str
    channels: int
    unit: str
    high: float
    picture: bool = True


@dataclass(frozen=True)
class Preset:
    """A named choice of policy and parameters.

    Attributes:
        measured: figures of a calibration run with this choice, as plain data.
    """

    policy: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    measured: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Task:
    """One of the things that a model can do.

    Attributes:
        num_inference_steps, guidance_scale: defaults.
        needs: fields of :class:`Conditioning` that must be given.
        description: for people.
    """

    num_inference_steps: int
    guidance_scale: float
    needs: tuple[str, ...] = ()
    description: str = ""


@dataclass(frozen=True)
class Conditioning:
    """What a rollout is conditioned on besides its observation and its actions.

    Attributes:
        task: one of the model's tasks; its first one if ``None``.
        prompt, negative_prompt: texts; the model's own if ``None``.
        goal: where it should end, uint8 ``[H, W, 3]`` at the model's resolution.
        fps: frames a second that the motion is meant for; the model's if ``None``.
        fov: horizontal angle of view of the camera in degrees; the model's if ``None``.
    """

    task: str | None = None
    prompt: str | None = None
    negative_prompt: str | None = None
    goal: NDArray[np.uint8] | None = None
    fps: float | None = None
    fov: float | None = None


UNCONDITIONED = Conditioning()
"""Nothing besides observation and actions."""


@dataclass(frozen=True)
class ModelInfo:
    """What a model tells its users about itself.

    Attributes:
        id: the model's name.
        resolution: height and width in pixels.
        fps: frames a second that the model was trained at.
        context_frames: frames that one chunk is conditioned on.
        chunk_frames: frames that one chunk generates; the most, if it may have several lengths.
        chunk_lengths: all lengths that a chunk may have, rising; empty if ``chunk_frames`` is the only one.
        observed_frames: frames of the observation that come before the generated ones in a rollout from an
            observation, as the model itself sees them.
        num_inference_steps: default denoise steps.
        max_inference_steps: most denoise steps that a request may ask for.
        starts: names of the observations that come with the model.
        presets: cache presets by name; ``default_preset`` is one of them.
        guidance_scale: default guidance; 1 means none.
        calibrations: parameters that were measured for this model, by policy.
        auto_preset: the preset that ``auto`` stands for; the default one if ``None``.
        conditioning: what a request may be conditioned on besides observation and actions, by the name of
            the field in :class:`Conditioning`: all values that are allowed, or none if any is.
        tasks: what the model can do, by name, the default one first; empty if there is but one thing.
        notice: what the licence wants every user to read.
    """

    id: str
    description: str
    action_space: ActionSpace
    modalities: tuple[Modality, ...]
    resolution: tuple[int, int]
    fps: float
    context_frames: int
    chunk_frames: int
    num_inference_steps: int
    starts: tuple[str, ...]
    presets: Mapping[str, Preset]
    default_preset: str
    licence: str
    guidance_scale: float = 1.0
    max_inference_steps: int = 1000
    calibrations: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    auto_preset: str | None = None
    chunk_lengths: tuple[int, ...] = ()
    observed_frames: int = 0
    conditioning: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    tasks: Mapping[str, Task] = field(default_factory=dict)
    notice: str | None = None

    def chunks(self, frames: int) -> int:
        """How many chunks so many frames take; the last one may have a surplus."""
        return -(-frames // self.chunk_frames)

    def chunk_length(self, frames: int) -> int:
        """Frames that the next chunk generates if so many are left: enough, or the most that it can."""
        return next((length for length in self.chunk_lengths if length >= frames), self.chunk_frames)

    def task(self, conditioning: Conditioning) -> Task:
        """What a request asks for, with its defaults.

        Raises:
            UnknownName: the model has no such task.
        """
        if not self.tasks:
            return Task(self.num_inference_steps, self.guidance_scale)
        name = conditioning.task or next(iter(self.tasks))
        if name not in self.tasks:
            raise UnknownName("task", name, self.tasks, param="conditioning.task")
        return self.tasks[name]

    @property
    def pictures(self) -> tuple[Modality, ...]:
        """The modalities whose frames are pictures."""
        return tuple(modality for modality in self.modalities if modality.picture)

    def modality(self, name: str, *, param: str | None = None) -> Modality:
        """The modality called ``name``."""
        for modality in self.modalities:
            if modality.name == name:
                return modality
        raise UnknownName("modality", name, (m.name for m in self.modalities), param=param)

    def preset(self, name: str, *, param: str = "cache") -> Preset:
        """The cache preset called ``name``; ``auto`` is the calibrated choice or else the default one."""
        if name == "auto":
            name = self.auto_preset or self.default_preset
        if name not in self.presets:
            raise UnknownName("preset", name, (*self.presets, "auto"), param=param)
        return self.presets[name]


@dataclass(frozen=True)
class Observation:
    """Where a rollout starts: one of the model's starts, or frames of the caller's.

    Attributes:
        start: name of a start.
        frames: uint8 ``[F, H, W, 3]`` at the model's resolution, oldest first.
        depth: float32 ``[F, H, W]`` in the model's unit, or ``None`` if unknown.
    """

    start: str | None = None
    frames: NDArray[np.uint8] | None = None
    depth: NDArray[np.float32] | None = None


@dataclass(frozen=True, eq=False)
class RolloutState:
    """How far a rollout is after some frames: all that is needed to go on from there.

    A value that nobody owns. Contexts are never changed, so any number of rollouts may begin from one. States
    are equal if they are the same object: contexts hold tensors, which cannot be compared so easily.

    Attributes:
        context: what the model's next chunk is conditioned on, of the model's own type.
        frames: how many frames were generated on the way there.
    """

    context: Any
    frames: int


@dataclass(frozen=True)
class ModalityStats:
    """How one modality of a chunk was denoised.

    Attributes:
        tokens: tokens of the chunk, in all guidance branches.
        skipped: token evaluations that were predicted instead of computed: tokens times cached steps.
        error: relative root mean square error that one more prediction would have had at the FULL
            steps that ended a streak; ``None`` if there was none.
    """

    tokens: int
    skipped: int
    error: float | None


@dataclass(frozen=True)
class ChunkStats:
    """How one chunk was denoised.

    Attributes:
        index: position of the chunk in its rollout.
        decisions: one letter a step, ``F`` computed or ``.`` predicted.
        drift: accumulated drift after each step, ``None`` for policies without one.
        token_classes: share of stable, linear and chaotic tokens by modality.
        token_map: int8 ``[N]``, the class of every token at the last FULL step: 0 stable, 1 linear,
            2 chaotic.
        token_grids: where the tokens of a branch lie, ``[T, h, w]`` by modality, in token order; empty for
            a model whose tokens form no grid.
        fallbacks: times that a value which is not finite made a step FULL.
        modalities: tokens, skips and errors by modality.
    """

    index: int
    decisions: str
    drift: tuple[float | None, ...]
    token_classes: Mapping[str, Mapping[str, float]] | None
    token_map: NDArray[np.int8] | None = None
    fallbacks: int = 0
    modalities: Mapping[str, ModalityStats] = field(default_factory=dict)
    token_grids: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)

    @property
    def steps_full(self) -> int:
        return self.decisions.count("F")


@dataclass(frozen=True)
class RolloutStats:
    """What a rollout took. Times in seconds."""

    policy: str
    chunks: tuple[ChunkStats, ...] = ()
    queue_seconds: float = 0.0
    first_frame_seconds: float | None = None
    latency_seconds: float = 0.0
    denoise_seconds: float = 0.0
    decode_seconds: float = 0.0

    @property
    def steps_total(self) -> int:
        return sum(len(chunk.decisions) for chunk in self.chunks)

    @property
    def steps_full(self) -> int:
        return sum(chunk.steps_full for chunk in self.chunks)

    @property
    def steps_cached(self) -> int:
        return self.steps_total - self.steps_full

    @property
    def skip_ratio(self) -> float:
        """Cached steps over all steps; 0 before the first."""
        return self.steps_cached / self.steps_total if self.steps_total else 0.0


@dataclass(frozen=True)
class RolloutStarted:
    """The rollout left the queue."""

    queue_seconds: float


@dataclass(frozen=True)
class ChunkFinished:
    """A chunk was denoised and decoded.

    Attributes:
        first_frame: index of the chunk's first frame in the rollout.
        frames: the frames that belong to the rollout (surplus ones are dropped), the observed ones before
            the first chunk's.
        state: from which another rollout can go on; ``None`` if surplus frames were dropped.
        decode_seconds: that decoding it took.
    """

    first_frame: int
    frames: Frames
    stats: ChunkStats
    state: RolloutState | None = None
    decode_seconds: float = 0.0


@dataclass(frozen=True)
class RolloutEnded:
    """The last event of every rollout.

    Attributes:
        status: ``succeeded``, ``failed`` or ``cancelled``.
        error: why it failed.
    """

    status: str
    stats: RolloutStats
    error: BaseException | None = None


RolloutEvent: TypeAlias = RolloutStarted | ChunkFinished | RolloutEnded
