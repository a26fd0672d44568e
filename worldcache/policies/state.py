"""What policies are told and what they remember: layout, schedule, a step's input, a chunk's state.

Knows nothing of how any policy decides or predicts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass

import torch
from torch import Tensor

from worldcache.core import Prediction


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

    def sums(self, values: Tensor) -> Tensor:
        """``[..., N]``, a value per token, as ``[modalities, ...]``: the sum over each one's tokens."""
        if self.branches > 1:
            values = values.unflatten(-1, (self.branches, -1)).sum(dim=-2)
        return torch.stack([part.sum(dim=-1) for part in values.split(self.counts, dim=-1)])

    def powers(self, *values: Tensor) -> Tensor:
        """Tensors ``[N, d]`` as ``[modalities, tensors]``: the squared length of each one's tokens."""
        lengths = [torch.linalg.vector_norm(one, dim=-1) for one in values]
        return self.sums(torch.stack(lengths).square_())


@dataclass(frozen=True)
class Schedule:
    """What a policy may know about a chunk before it starts.

    Attributes:
        sigmas: noise level of each step, falling; one entry per denoise step.
        alphas: signal level of each step (``1 - sigma`` for flow matching).
        layout: the token layout of the outputs.
        prediction: what outputs y are, given the latent x and the data prediction D: ``flow`` for
            ``D = x - sigma y``, ``v`` for ``D = alpha x - sigma y``, ``epsilon`` for
            ``D = (x - sigma y) / alpha``.
    """

    sigmas: tuple[float, ...]
    alphas: tuple[float, ...]
    layout: TokenLayout
    prediction: Prediction = "flow"

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


@dataclass(frozen=True, eq=False)
class Miss:
    """How far the prediction of a step was off that was computed after all.

    Attributes:
        error: the prediction minus the output, ``[N, d]``.
        powers: squared lengths of the error and of the output, ``[modalities, 2]``.
    """

    error: Tensor
    powers: Tensor

    @property
    def relative(self) -> Tensor:
        """RMS of the error over RMS of the output, ``[modalities]``."""
        return relative_rms(self.powers)


def relative_rms(powers: Tensor) -> Tensor:
    """From squared lengths ``[..., 2]`` of an error and of what it is relative to; finite where that is 0."""
    errors, sizes = powers.unbind(dim=-1)
    relative: Tensor = (errors / sizes.clamp(min=torch.finfo(sizes.dtype).tiny)).sqrt()
    return relative


class StepInput:
    """What a step starts from. Each part is made when it is first asked for, and kept for the step.

    Args:
        latent: makes the latent as tokens ``[N, d]``, once per guidance branch.
        modulated: makes the timestep-modulated input of the conditional branch, of any shape.
    """

    def __init__(
        self,
        latent: Callable[[], Tensor] | None = None,
        modulated: Callable[[], Tensor] | None = None,
    ) -> None:
        self._make_latent, self._make_modulated = latent, modulated
        self._latent: Tensor | None = None
        self._modulated: Tensor | None = None

    def latent(self) -> Tensor:
        """The latent that the step starts from, tokens ``[N, d]``."""
        if self._latent is None:
            assert self._make_latent is not None, "this step has no latent"
            self._latent = self._make_latent()
        return self._latent

    def modulated(self) -> Tensor:
        """What the backbone's first block sees after modulation by timestep and actions."""
        if self._modulated is None:
            assert self._make_modulated is not None, "this step has no modulated input"
            self._modulated = self._make_modulated()
        return self._modulated


@dataclass
class PolicyState:
    """Everything a policy remembers within one chunk; dropped with the chunk.

    Attributes:
        schedule: the chunk's schedule.
        history: FULL outputs so far, as many as the policy asked for.
        next_full: the step at which the next FULL output is due; a policy that decides step by step
            uses it for steps that must be FULL whatever it measures.
        drift: drift accumulated since the last FULL step, after the latest step; ``None`` for
            policies that measure none.
        planned_drift: what ``drift`` will be after each cached step of the planned streak; empty for
            policies that cannot tell.
        token_class: int8 ``[N]``, 0 stable, 1 linear, 2 chaotic; ``None`` before it is known or
            for policies that do not classify.
        finite: whether each of the last FULL outputs was finite, newest first.
        fallbacks: times that a value which is not finite made the next step FULL.
    """

    schedule: Schedule
    history: History
    next_full: int = 0
    drift: float | None = None
    planned_drift: tuple[float, ...] = ()
    token_class: Tensor | None = None
    finite: tuple[bool, ...] = ()
    fallbacks: int = 0

    @property
    def newest(self) -> int:
        """t0, the newest FULL step."""
        return self.history.steps[0]


def tensor_bytes(value: object) -> int:
    """Bytes of all tensors within ``value``: a tensor, a dataclass, or any nesting of both.

    Tensors that begin at the same address are counted once.
    """
    sizes: dict[int, int] = {}
    for tensor in _tensors(value):
        size = tensor.numel() * tensor.element_size()
        sizes[tensor.data_ptr()] = max(size, sizes.get(tensor.data_ptr(), 0))
    return sum(sizes.values())


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif is_dataclass(value) and not isinstance(value, type):
        for entry in fields(value):
            yield from _tensors(getattr(value, entry.name))
    elif isinstance(value, Mapping):
        yield from _tensors(tuple(value.values()))
    elif isinstance(value, Iterable) and not isinstance(value, str):
        for part in value:
            yield from _tensors(part)
