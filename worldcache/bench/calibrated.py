"""Policies as the benchmark makes them: with the model's calibration, or one measured on the spot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from worldcache.bench.lockstep import denoise_lockstep
from worldcache.bench.settings import Setting
from worldcache.bench.work import Work
from worldcache.bench.wrapper import BenchWorldModel
from worldcache.models.base import WorldModel
from worldcache.policies.registry import AnyPolicy, get_policy_class, make_policy


def record(
    model: WorldModel, work: Work, setting: Setting, *, num_steps: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Outputs as tokens ``[T, S * N, d]`` and modulated inputs ``[T, S, ...]`` of uncached chunks."""
    outputs, modulated = [], []

    def watch(step: int, rows: Any, values: Tensor) -> None:
        outputs.append(model.tokens(values.shape[1:]).to_tokens(values))
        if model.offers_modulated_input:
            modulated.append(torch.stack([model.modulated_input(row) for row in rows]))

    denoise_lockstep(model, work.samples, setting, num_steps=num_steps, seed=seed, watch=watch)
    return torch.stack(outputs), torch.stack(modulated) if modulated else torch.empty(0)


class PolicyMaker:
    """Makes policies for one model and setting; measures what the model has no calibration for, once."""

    def __init__(
        self, model: BenchWorldModel, work: Work, setting: Setting, *, num_steps: int, seed: int
    ) -> None:
        self._model, self._work, self._setting = model, work, setting
        self._num_steps, self._seed = num_steps, seed
        self._recording: tuple[Tensor, Tensor] | None = None
        self._measured: dict[str, Mapping[str, Any]] = {}

    def make(self, name: str, parameters: Mapping[str, Any]) -> AnyPolicy:
        """The policy, its calibrated parameters filled in."""
        return make_policy(name, **{**self.calibration(name), **parameters})

    def calibration(self, name: str) -> Mapping[str, Any]:
        """The calibrated parameters of a policy; measured at this very setting."""
        policy = get_policy_class(name)
        if not policy.calibrated:
            return {}
        if name not in self._measured:
            if self._recording is None:
                self._recording = record(
                    self._model, self._work, self._setting, num_steps=self._num_steps, seed=self._seed
                )
            outputs, modulated = self._recording
            self._measured[name] = policy.calibrate(outputs, lambda: modulated)
        return self._measured[name]
