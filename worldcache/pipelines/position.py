"""Which denoise step a call of the transformer belongs to, found from the pipeline and never counted.

Knows nothing of policies or outputs. Nothing here reads the device unless a scheduler and a pipeline
say nothing else than the value of a timestep.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch
from diffusers.hooks.hooks import CacheContext
from torch import Tensor

from worldcache.errors import InvalidInput
from worldcache.pipelines.levels import NoiseLevels, noise_levels


@dataclass(frozen=True, eq=False)
class Position:
    """Where a call stands.

    Attributes:
        course: what stands for the whole schedule; another object with every call of the pipeline.
        index: index of the denoise step in it.
    """

    course: object
    index: int


class StepSource(Protocol):
    """Says where the transformer's calls stand."""

    def locate(self, context: CacheContext | None, timestep: object) -> Position:
        """Where the call with this ``timestep`` argument, in this ``cache_context``, stands."""

    def levels(self) -> NoiseLevels:
        """The noise levels of the current course."""


class SchedulerSteps:
    """Steps of a diffusers scheduler.

    Every call of ``set_timesteps`` makes a new tensor of timesteps, and with it a new course. In it the
    step is, in this order: the entry of ``timesteps`` that the timestep argument, or the pipeline's
    current timestep, is a view of; what ``cache_context`` says; the scheduler's own ``step_index``; the
    entry with the value of the timestep.

    Args:
        owner: a pipeline, whose ``scheduler`` is looked up at every call, or a scheduler. Held weakly.
    """

    def __init__(self, owner: object) -> None:
        self._owner = weakref.ref(owner)

    def locate(self, context: CacheContext | None, timestep: object) -> Position:
        """Where a call stands.

        Raises:
            InvalidInput: the timestep is not one of the scheduler's; ``param`` is ``timestep``.
        """
        owner, scheduler = self._parts()
        timesteps = scheduler.timesteps
        for candidate in (timestep, getattr(owner, "_current_timestep", None)):
            index = _view_index(timesteps, candidate)
            if index is not None:
                return Position(timesteps, index)
        if context is not None and context.step_index is not None:
            return Position(timesteps, context.step_index)
        if hasattr(scheduler, "step_index"):
            first = getattr(scheduler, "begin_index", None) or 0
            return Position(timesteps, first if scheduler.step_index is None else scheduler.step_index)
        return Position(timesteps, _nearest_index(timesteps, timestep))

    def levels(self) -> NoiseLevels:
        return noise_levels(self._parts()[1])

    def _parts(self) -> tuple[object, Any]:
        """The owner and its scheduler.

        Raises:
            InvalidInput: there is none, or it has no timesteps yet; ``param`` is ``scheduler``.
        """
        owner = self._owner()
        scheduler = getattr(owner, "scheduler", owner)
        if scheduler is None:
            raise InvalidInput("the scheduler that gave the steps is gone; enable again", param="scheduler")
        if getattr(scheduler, "num_inference_steps", 0) is None:
            raise InvalidInput("call set_timesteps before the transformer", param="scheduler")
        return owner, scheduler


class AnnouncedSteps:
    """Steps that the caller announces one by one; one course, of the caller's own noise levels."""

    def __init__(self, levels: NoiseLevels) -> None:
        self._levels = levels
        self.index = 0

    def locate(self, context: CacheContext | None, timestep: object) -> Position:
        return Position(self, self.index)

    def levels(self) -> NoiseLevels:
        return self._levels


class NoSteps:
    """A bare transformer outside of :func:`worldcache.steps`."""

    def locate(self, context: CacheContext | None, timestep: object) -> Position:
        raise InvalidInput(
            "nothing says which step this is: enable the pipeline, give enable(transformer, "
            "scheduler=...), or go through the steps with worldcache.steps(transformer, sigmas)",
            param="scheduler",
        )

    def levels(self) -> NoiseLevels:
        raise AssertionError("no step was located")


def _view_index(timesteps: object, timestep: object) -> int | None:
    """The entry of ``timesteps`` that ``timestep`` shows, by address alone; ``None`` if it shows none."""
    if not (isinstance(timesteps, Tensor) and isinstance(timestep, Tensor) and timesteps.ndim == 1):
        return None
    if timestep.dtype != timesteps.dtype or timestep.device != timesteps.device or not timestep.numel():
        return None
    if timestep.untyped_storage().data_ptr() != timesteps.untyped_storage().data_ptr():
        return None
    if any(stride for size, stride in zip(timestep.shape, timestep.stride(), strict=True) if size > 1):
        return None
    offset = int(timestep.storage_offset()) - int(timesteps.storage_offset())
    index, rest = divmod(offset, timesteps.stride(0))
    return index if not rest and 0 <= index < len(timesteps) else None


def _nearest_index(timesteps: Sequence[float] | Tensor, timestep: object) -> int:
    """The entry nearest to the (largest) value of ``timestep``. Reads it."""
    values: list[float] = torch.as_tensor(timesteps).double().tolist()
    if isinstance(timestep, Tensor) and timestep.numel():
        value = float(timestep.max())
    elif isinstance(timestep, int | float):
        value = float(timestep)
    else:
        raise InvalidInput("the call has no timestep, from which its step could be told", param="timestep")
    index = min(range(len(values)), key=lambda i: abs(values[i] - value))
    gaps = [abs(before - after) for before, after in pairwise(values) if before != after]
    if abs(values[index] - value) > min(gaps, default=1.0) / 2:
        raise InvalidInput(
            f"timestep {value:g} is none of the scheduler's; go through the steps with "
            "worldcache.steps(transformer, sigmas)",
            param="timestep",
        )
    return index
