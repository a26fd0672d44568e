"""What every cache policy is: a frozen config, a state that lives for one chunk, five verbs.

A policy knows nothing about models, schedulers or requests. It sees outputs as tokens
``[N, d]`` in float32 and answers one question per denoise step: compute (FULL) or predict
(CACHED)?

Life of a state, driven by the denoise loop (``worldcache/engine/denoise.py``) or by
:func:`worldcache.replay`::

    state = policy.reset(schedule)                       # once per chunk
    for step in range(schedule.num_steps):
        if policy.should_compute(state, step, latent):   # FULL
            evidence = policy.update(state, step, output, latent)
            policy.plan(state, [] if evidence is None else evidence.tolist())
        else:                                            # CACHED
            output = policy.predict(state, step, latent)

``update`` stays on the device. What the host must see to plan is returned as one small tensor,
so that the engine can read the evidence of every active rollout with a single transfer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Generic, TypeVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor


class PolicyConfig(BaseModel):
    """Parameters of a policy: validated, immutable, and described by their JSON schema."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True)
class TokenLayout:
    """Which rows of a token matrix belong to which modality.

    Attributes:
        names: modality names in token order, for example ``("rgb", "depth")``.
        counts: tokens of each modality in one branch.
        branches: guidance branches stacked one after the other (1, or 2 with guidance).
    """

    names: tuple[str, ...]
    counts: tuple[int, ...]
    branches: int = 1

    @property
    def tokens_per_branch(self) -> int:
        return sum(self.counts)

    @property
    def num_tokens(self) -> int:
        return self.branches * self.tokens_per_branch

    def slices(self, name: str) -> list[slice]:
        """The rows of modality ``name``, one slice per branch."""
        index = self.names.index(name)
        first = sum(self.counts[:index])
        return [
            slice(start, start + self.counts[index])
            for start in range(first, self.num_tokens, self.tokens_per_branch)
        ]


@dataclass(frozen=True)
class Schedule:
    """What a policy may know about a chunk before it starts.

    Attributes:
        sigmas: noise level of each step, falling; one entry per denoise step.
        alphas: signal level of each step (``1 - sigma`` for flow matching).
        layout: the token layout of the outputs.
    """

    sigmas: tuple[float, ...]
    alphas: tuple[float, ...]
    layout: TokenLayout

    @property
    def num_steps(self) -> int:
        return len(self.sigmas)

    @property
    def last_step(self) -> int:
        return self.num_steps - 1


@dataclass
class History:
    """The newest FULL outputs of a chunk, newest first.

    Attributes:
        outputs: tensors ``[N, d]`` float32.
        steps: the step each of them was computed at.
    """

    depth: int
    outputs: deque[Tensor] = field(init=False)
    steps: deque[int] = field(init=False)

    def __post_init__(self) -> None:
        self.outputs = deque(maxlen=self.depth)
        self.steps = deque(maxlen=self.depth)

    def push(self, step: int, output: Tensor) -> None:
        self.outputs.appendleft(output)
        self.steps.appendleft(step)

    def __len__(self) -> int:
        return len(self.outputs)

    def gap(self, index: int) -> int:
        """Steps between FULL output ``index`` and the one before it (h0 is ``gap(0)``)."""
        return self.steps[index] - self.steps[index + 1]


@dataclass
class PolicyState:
    """Everything a policy remembers within one chunk; dropped with the chunk.

    Attributes:
        schedule: the chunk's schedule.
        history: FULL outputs so far, as many as the policy asked for.
        next_full: the step at which the next FULL output is due (planning policies).
        drift: drift accumulated since the last FULL step, after the latest step; ``None`` for
            policies that measure none.
        token_class: int8 ``[N]``, 0 stable, 1 linear, 2 chaotic; ``None`` before it is known or
            for policies that do not classify.
    """

    schedule: Schedule
    history: History
    next_full: int = 0
    drift: float | None = None
    token_class: Tensor | None = None


ConfigT = TypeVar("ConfigT", bound=PolicyConfig)
StateT = TypeVar("StateT", bound=PolicyState)


class Policy(ABC, Generic[ConfigT, StateT]):
    """Decides which denoise steps are computed, and predicts the others.

    A policy object holds its config and nothing else, so one object may serve any number of
    rollouts at once. All mutation happens on the state it is handed.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    source: ClassVar[str]
    plans_ahead: ClassVar[bool]
    config_type: ClassVar[type[PolicyConfig]]
    reads_latent: ClassVar[bool] = False
    """Whether any verb reads ``latent``; where it is False the denoise loop passes ``None``."""

    def __init__(self, config: ConfigT) -> None:
        self.config = config

    @abstractmethod
    def reset(self, schedule: Schedule) -> StateT:
        """A fresh state for a chunk with this schedule."""

    @abstractmethod
    def should_compute(self, state: StateT, step: int, latent: Tensor | None) -> bool:
        """Whether ``step`` must be FULL.

        Args:
            state: the chunk's state.
            step: index of the denoise step, from 0.
            latent: the current latent as tokens ``[N, d]``; a policy that plans never reads it.
        """

    @abstractmethod
    def update(self, state: StateT, step: int, output: Tensor, latent: Tensor | None) -> Tensor | None:
        """Learn from the FULL output of ``step``.

        Args:
            state: the chunk's state; the output is added to its history.
            step: index of the denoise step.
            output: what the backbone returned, tokens ``[N, d]`` float32, before guidance. Kept by
                reference: the caller must not write to it afterwards.
            latent: the latent that the output was computed from, as tokens ``[N, d]``.

        Returns:
            The evidence that the host must see in order to plan, a float32 vector on the output's
            device, or ``None`` when the host needs nothing.
        """

    @abstractmethod
    def plan(self, state: StateT, evidence: Sequence[float]) -> None:
        """Take the evidence of the latest ``update``, now on the host, and set the next FULL step."""

    @abstractmethod
    def predict(self, state: StateT, step: int, latent: Tensor | None) -> Tensor:
        """The predicted output ``[N, d]`` float32 of a CACHED step. Reads nothing to the host.

        It may be a tensor of the history itself: the caller must not write to it.
        """

    def class_ratios(self, state: StateT) -> dict[str, dict[str, float]] | None:
        """Share of stable, linear and chaotic tokens per modality, or ``None`` if unclassified.

        Reads the device once; meant to be called at the end of a chunk.
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
