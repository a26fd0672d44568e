"""The denoise loop of one chunk: compute a step or predict it, then let the sampler move the latent.

Knows one chunk of one rollout. It never calls the backbone: it says which rows it needs, takes
their outputs, and runs its streak of cached steps until it needs rows again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from operator import add
from typing import Any

import torch
from torch import Tensor

from worldcache.core import ChunkStats, ModalityStats
from worldcache.engine.latent import Latent
from worldcache.engine.measure import PredictionErrors
from worldcache.errors import RolloutFailed
from worldcache.models.base import ChunkTask, Row, TokenView, WorldModel
from worldcache.policies.base import History, PolicyState, Schedule, StepInput
from worldcache.policies.planned import PlannedPolicy


@dataclass
class ChunkDenoiser:
    """Denoises one chunk.

    Args:
        model: the model whose rows are computed.
        task: the chunk; the policy's state lives here, for this chunk only.

    A step is done in two halves, so that the engine can read the evidence of all its rollouts at
    once: :meth:`take` on the device, then :meth:`advance` with the evidence on the host.
    """

    model: WorldModel
    task: ChunkTask
    step: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        task = self.task
        self.policy = task.policy
        noise = self.model.initial_latent(task.condition, task.frames, task.generator)
        self._view = self.model.tokens(noise.shape)
        self._latent = Latent(self._view, noise)
        self._sampler = self.model.sampler(task.num_steps)
        self._guidance = self.model.guidance(task.guidance_scale, self._sampler)
        layout = replace(self._view.layout, branches=2 if self._guided else 1)
        sampler = self._sampler
        schedule = Schedule(sampler.sigmas, sampler.alphas, layout, sampler.prediction)
        self._state = self.policy.reset(schedule)
        self._layout = layout
        self._errors = PredictionErrors(layout)
        self._decisions: list[str] = []
        self._drift: list[float | None] = []
        self._output: Tensor | None = None
        try:
            assert self._must_compute(), "there is nothing yet to predict from"
        except Exception:
            self.close()
            raise

    @property
    def frames(self) -> int:
        return self.task.frames

    @property
    def latent(self) -> Tensor:
        """The latent after the steps so far."""
        return self._latent.value

    @property
    def view(self) -> TokenView:
        """The chunk's latent and outputs as tokens."""
        return self._view

    @property
    def done(self) -> bool:
        return self.step == self.task.num_steps

    def rows(self) -> list[Row]:
        """The backbone rows that the current step needs."""
        timestep = self._sampler.timesteps[self.step]
        branches = (False, True) if self._guided else (False,)
        return [Row(self.latent, timestep, self.task.condition, unconditional) for unconditional in branches]

    def take(self, tokens: Tensor) -> Tensor:
        """First half of a FULL step: learn from the rows' outputs, tokens ``[branches * N, d]``.

        Returns:
            Evidence for :meth:`advance`, float32 on the device, as :meth:`Policy.learn` returns it.
        """
        miss = None
        if self._decisions and self._decisions[-1] == ".":
            miss = self.policy.miss(self._state, self.step, tokens, self._inputs)
            self._errors.add(miss)
        self._output = tokens
        return self.policy.learn(self._state, self.step, tokens, self._inputs, miss)

    def advance(self, evidence: Sequence[float]) -> None:
        """Second half: plan from the evidence, then predict steps until one must be computed.

        Raises:
            RolloutFailed: the backbone's output was not finite.
        """
        if not math.isfinite(evidence[0]):
            raise RolloutFailed(f"the model returned a value that is not finite at step {self.step}")
        self.policy.plan(self._state, evidence)
        output, self._output = self._output, None
        assert output is not None, "take comes first"
        deltas, steady = self._sampler.deltas, len(set(self._guidance)) == 1
        if deltas is not None and steady and isinstance(self.policy, PlannedPolicy):
            self._run_planned_streak(self.policy, deltas, output)
        else:
            self._run_streak(output)
        if self.done:  # what follows needs none of the outputs, and may have to wait
            kept = self._state
            self._state = PolicyState(
                kept.schedule, History(0), token_class=kept.token_class, fallbacks=kept.fallbacks
            )

    def stats(self, index: int) -> ChunkStats:
        """How the chunk went; reads the device for token classes and prediction errors."""
        classes = self._state.token_class
        return ChunkStats(
            index,
            "".join(self._decisions),
            tuple(self._drift),
            self.policy.class_ratios(self._state),
            None if classes is None else classes.cpu().numpy(),
            self._state.fallbacks,
            self._modalities(),
            self._view.grids,
        )

    def close(self) -> None:
        """Let go of the step's inputs, which refer to this: without them it is freed with its last user."""
        self._inputs = StepInput()

    def _modalities(self) -> dict[str, ModalityStats]:
        branches, cached = self._layout.branches, self._decisions.count(".")
        errors = self._errors.read()
        return {
            name: ModalityStats(branches * count, branches * count * cached, errors[name])
            for name, count in zip(self._layout.names, self._layout.counts, strict=True)
        }

    @property
    def _guided(self) -> bool:
        return self.task.guidance_scale != 1.0

    def _run_streak(self, output: Tensor) -> None:
        """Move the latent step by step, with the FULL output and with predictions."""
        self._move(output)
        self._count_step("F")
        while not self._must_compute():
            self._move(self.policy.predict(self._state, self.step, self._inputs))
            self._count_step(".")

    def _run_planned_streak(
        self, policy: PlannedPolicy[Any, Any], deltas: Sequence[float], output: Tensor
    ) -> None:
        """Add up on the host how much each tensor moves the latent, then move it once."""
        moves: tuple[float, ...] = ()
        whole = deltas[self.step]
        self._count_step("F")
        while not self._must_compute():
            more = tuple(deltas[self.step] * weight for weight in policy.weights(self._state, self.step))
            moves = tuple(map(add, moves, more)) if moves else more
            whole += deltas[self.step]
            self._count_step(".")
        latent = self._latent.tokens
        moved = output * whole if self._guided else torch.add(latent, output, alpha=whole)
        if moves:
            policy.add(self._state, moved, moves)
        if self._guided:
            moved = self._guide(moved).add_(latent)
        self._latent = Latent(self._view, self._view.from_tokens(moved)[0], moved)

    def _must_compute(self) -> bool:
        """Whether there is no step left, or the current one is FULL."""
        if self.done:
            self._inputs = StepInput()
            return True
        self._inputs = StepInput(self._latent_tokens, self._modulated_input)
        return self.policy.should_compute(self._state, self.step, self._inputs)

    def _count_step(self, decision: str) -> None:
        self._drift.append(self._state.drift)
        self._decisions.append(decision)
        self.step += 1

    def _latent_tokens(self) -> Tensor:
        return self._latent.tokens.repeat(self._layout.branches, 1)

    def _modulated_input(self) -> Tensor:
        return self.model.modulated_input(self.rows()[0])

    def _move(self, tokens: Tensor) -> None:
        """Let the sampler take the current step with the outputs ``[branches * N, d]``."""
        guided = self._guide(tokens)
        if self._sampler.deltas is not None:
            moved = torch.add(self._latent.tokens, guided, alpha=self._sampler.deltas[self.step])
            self._latent = Latent(self._view, tokens=moved)
            return
        output = self._view.from_tokens(guided)[0]
        value = self._sampler.step(self.step, output, self._latent.value, self.task.generator)
        self._latent = Latent(self._view, value)

    def _guide(self, tokens: Tensor) -> Tensor:
        """Apply the step's guidance: ``[branches * N, d]`` to ``[N, d]``. Linear: sums may go through it."""
        if not self._guided:
            return tokens
        conditional, unconditional = tokens.chunk(2)
        scale = self._guidance[min(self.step, self.task.num_steps - 1)]
        return torch.lerp(unconditional, conditional, scale)
