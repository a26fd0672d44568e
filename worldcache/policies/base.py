"""What every cache policy is: a frozen config, a state that lives for one chunk, a few verbs.

A policy knows nothing about models, schedulers or requests. It sees outputs as tokens
``[N, d]`` in float32 and answers one question per denoise step: compute (FULL) or predict
(CACHED)?

Life of a state, driven by the denoise loop (``worldcache/engine/denoise.py``) or by
:func:`worldcache.replay`::

    state = policy.reset(schedule)                        # once per chunk
    for step in range(schedule.num_steps):
        inputs = StepInput(...)                           # made lazily, for policies that look at it
        if policy.should_compute(state, step, inputs):    # FULL; asked once per step
            evidence = policy.learn(state, step, output, inputs)
            policy.plan(state, evidence.tolist())
        else:                                             # CACHED
            output = policy.predict(state, step, inputs)

``learn`` stays on the device. What the host must see to plan is returned as one small tensor,
so that the engine can read the evidence of every active rollout with a single transfer.

A policy implements ``reset``, ``should_compute``, ``update``, ``settle`` and ``predict``. What no
policy may forget is done here: nothing is ever predicted from a value that is not finite.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar, final

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from worldcache.errors import InvalidInput
from worldcache.policies.state import (
    History,
    Miss,
    PolicyState,
    Schedule,
    StepInput,
    TokenLayout,
    tensor_bytes,
)

__all__ = [
    "ConfigT",
    "History",
    "Miss",
    "Policy",
    "PolicyConfig",
    "PolicyState",
    "Schedule",
    "StateT",
    "StepInput",
    "TokenLayout",
]


class PolicyConfig(BaseModel):
    """Parameters of a policy: validated, immutable, and described by their JSON schema."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


ConfigT = TypeVar("ConfigT", bound=PolicyConfig)
StateT = TypeVar("StateT", bound=PolicyState)


class Policy(ABC, Generic[ConfigT, StateT]):
    """Decides which denoise steps are computed, and predicts the others.

    A policy object holds its config and nothing else, so one object may serve any number of
    rollouts at once. All mutation happens on the state it is handed, in ``should_compute``,
    ``learn`` and ``plan``.

    Attributes:
        plans_ahead: whether the next FULL step is known at the latest one, so that a cached step
            reads nothing to the host. Otherwise a step reads one number at most.
        calibrated: parameters that come from the model's calibration unless they are given.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    source: ClassVar[str]
    plans_ahead: ClassVar[bool]
    config_type: ClassVar[type[PolicyConfig]]
    calibrated: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: ConfigT) -> None:
        self.config = config

    @property
    def reach(self) -> int:
        """How many FULL outputs, from the newest back, a prediction depends on."""
        return 1

    @property
    def kept_outputs(self) -> int:
        """Most tensors of an output's size that a state holds, latents and modulated inputs included."""
        return 1

    @classmethod
    def calibrate(cls, outputs: Tensor, modulated: Callable[[], Tensor]) -> Mapping[str, Any]:
        """The ``calibrated`` parameters, from one uncached chunk.

        Args:
            outputs: ``[T, N, d]``, the output of every step.
            modulated: gives the modulated inputs ``[T, ...]``.
        """
        return {}

    @abstractmethod
    def reset(self, schedule: Schedule) -> StateT:
        """A fresh state for a chunk with this schedule."""

    @abstractmethod
    def should_compute(self, state: StateT, step: int, inputs: StepInput) -> bool:
        """Whether ``step`` must be FULL. Asked once per step, in order.

        Args:
            state: the chunk's state.
            step: index of the denoise step, from 0.
            inputs: what the step starts from; a policy that plans never asks for any of it here.
        """

    @abstractmethod
    def update(
        self, state: StateT, step: int, output: Tensor, inputs: StepInput, miss: Miss | None
    ) -> Tensor | None:
        """Remember the FULL output of ``step`` in ``state.history``, and whatever follows from it.

        Called by :meth:`learn` alone; arguments as there.

        Returns:
            The evidence that the host must see in order to plan, a float32 vector on the output's
            device, or ``None`` when the host needs nothing.
        """

    @abstractmethod
    def settle(self, state: StateT, evidence: Sequence[float]) -> None:
        """Take what ``update`` returned, now on the host and all finite, and set the next FULL step.

        Called by :meth:`plan` alone, and only if everything that a prediction would use is finite.
        """

    @abstractmethod
    def predict(self, state: StateT, step: int, inputs: StepInput) -> Tensor:
        """The predicted output ``[N, d]`` float32 of ``step``, any step after the newest FULL one.

        Pure: it changes nothing in the state and reads nothing to the host. The result may be a
        tensor of the history itself: the caller must not write to it.
        """

    def error(self, state: StateT, step: int, output: Tensor, inputs: StepInput) -> Tensor:
        """The prediction of ``step`` minus ``output``, ``[N, d]``; never a tensor that is kept anywhere."""
        return self.predict(state, step, inputs) - output

    @final
    def miss(self, state: StateT, step: int, output: Tensor, inputs: StepInput) -> Miss:
        """How far the prediction of ``step`` is off, before the output is learnt from."""
        error = self.error(state, step, output, inputs)
        return Miss(error, state.schedule.layout.powers(error, output))

    @final
    def learn(
        self, state: StateT, step: int, output: Tensor, inputs: StepInput, miss: Miss | None = None
    ) -> Tensor:
        """First half of a FULL step, on the device.

        Args:
            state: the chunk's state.
            step: index of the denoise step.
            output: what the backbone returned, tokens ``[N, d]`` float32, before guidance. Kept by
                reference: the caller must not write to it afterwards.
            inputs: what the output was computed from.
            miss: how far the policy's own prediction of the step is off, if the caller knows it already.

        Returns:
            Evidence for :meth:`plan`, float32: a number that is finite if the output is, then the policy's
            own.
        """
        evidence = self.update(state, step, output, inputs, miss)
        total = output.sum().reshape(1)  # not finite if any is not; far cheaper than testing each
        return total if evidence is None else torch.cat([total, evidence])

    @final
    def plan(self, state: StateT, evidence: Sequence[float]) -> None:
        """Second half of a FULL step, on the host: settle when to compute next.

        If any of the last ``reach`` FULL outputs or anything in the evidence is not finite, the next
        step is FULL and ``state.fallbacks`` counts it.
        """
        state.finite = (math.isfinite(evidence[0]), *state.finite)[: self.reach]
        if state.drift is not None:
            state.drift = 0.0
        if all(state.finite) and all(map(math.isfinite, evidence[1:])):
            self.settle(state, evidence[1:])
        else:
            state.next_full = state.newest + 1
            state.fallbacks += 1

    @final
    def memory_bytes(self, state: StateT) -> int:
        """Bytes of all tensors that the state keeps."""
        return tensor_bytes(state)

    def class_ratios(self, state: StateT) -> dict[str, dict[str, float]] | None:
        """Share of stable, linear and chaotic tokens per modality, or ``None`` if unclassified.

        Reads the device once per modality; meant to be called at the end of a chunk.
        """
        if state.token_class is None:
            return None
        layout = state.schedule.layout
        ratios = {}
        for name in layout.names:
            classes = torch.cat([state.token_class[rows] for rows in layout.slices(name)]).long()
            share = (torch.bincount(classes, minlength=3).float() / classes.numel()).tolist()
            ratios[name] = dict(zip(("stable", "linear", "chaotic"), share, strict=True))
        return ratios

    def _from_calibration(self, parameter: str) -> Any:
        """A ``calibrated`` parameter that must be known by now.

        Raises:
            InvalidInput: it was neither given nor taken from a calibration.
        """
        value = getattr(self.config, parameter)
        if value is None:
            raise InvalidInput(
                f"policy {self.name!r} needs {parameter!r}: give it, or calibrate the model",
                param=f"cache.{parameter}",
                code="policy_not_calibrated",
            )
        return value
