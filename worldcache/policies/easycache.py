"""``easycache``: compute again once the latent has moved so far that the output must have changed.

Source: EasyCache, arXiv 2507.02860; the defaults are those published for Wan 2.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from worldcache.policies.base import History, Miss, PolicyConfig, Schedule, StepInput
from worldcache.policies.online import AccumulatingConfig, AccumulatingPolicy, AccumulatingState


class EasyCacheConfig(AccumulatingConfig):
    """Parameters of ``easycache``, with the paper's symbols in brackets."""

    threshold: float = Field(
        default=0.05,
        ge=0,
        description="Accumulated relative change of the output from which a step is FULL (tau).",
    )
    warmup_steps: int = Field(default=10, ge=0, description="First steps that are all FULL.")


@dataclass
class EasyCacheState(AccumulatingState):
    """What ``easycache`` remembers besides the common state.

    Attributes:
        anchor: the latent that y0 was computed from, ``[N, d]``.
        rate: relative change of the output per change of the latent: ``khat / mean|y0|``; ``None``
            before two FULL outputs are known.
    """

    anchor: Tensor | None = None
    rate: float | None = None


class EasyCachePolicy(AccumulatingPolicy[EasyCacheConfig, EasyCacheState]):
    """Each step adds ``khat * mean|x_s - x_(s-1)| / mean|y0|``; cached steps return ``x_s + (y0 - x_t0)``.

    x is the latent and ``khat = mean|y0 - y1| / mean|x_t0 - x_t1|``. A step is FULL once the sum has
    reached the threshold, among the first ``warmup_steps``, and at the end of the schedule. Decided on
    the conditional branch, applied to both.
    """

    name: ClassVar[str] = "easycache"
    description: ClassVar[str] = (
        "Reuses the difference between output and latent until the latent has moved too far."
    )
    source: ClassVar[str] = "EasyCache, arXiv 2507.02860"
    config_type: ClassVar[type[PolicyConfig]] = EasyCacheConfig

    @property
    def kept_outputs(self) -> int:
        return 3

    def reset(self, schedule: Schedule) -> EasyCacheState:
        return EasyCacheState(schedule, History(depth=1), drift=0.0)

    def watch(self, state: EasyCacheState, inputs: StepInput) -> Tensor:
        return inputs.latent()

    def estimate(self, state: EasyCacheState, previous: Tensor, current: Tensor) -> float:
        assert state.rate is not None
        rows = self._conditional(state)
        return state.rate * (current[rows] - previous[rows]).abs().mean().item()

    def update(
        self, state: EasyCacheState, step: int, output: Tensor, inputs: StepInput, miss: Miss | None
    ) -> Tensor | None:
        """Remember output and latent; the evidence is ``khat / mean|y0|``, from the second output on."""
        latent, rows = inputs.latent(), self._conditional(state)
        evidence = None
        if state.anchor is not None:
            moved = (latent[rows] - state.anchor[rows]).abs().mean()
            changed = (output[rows] - state.history.outputs[0][rows]).abs().mean()
            evidence = (changed / moved / output[rows].abs().mean()).reshape(1)
        state.anchor = latent
        state.history.push(step, output)
        return evidence

    def settle(self, state: EasyCacheState, evidence: Sequence[float]) -> None:
        """Take the rate; one output alone tells none, and the next step is FULL."""
        if evidence:
            state.rate = evidence[0]
        else:
            state.next_full = state.newest + 1

    def predict(self, state: EasyCacheState, step: int, inputs: StepInput) -> Tensor:
        assert state.anchor is not None
        return inputs.latent() + (state.history.outputs[0] - state.anchor)

    def _conditional(self, state: EasyCacheState) -> slice:
        return slice(state.schedule.layout.tokens_per_branch)
