"""The hook that stands between a pipeline and its transformer.

Knows no pipeline and no transformer by name.
"""

from __future__ import annotations

import inspect
from collections import Counter
from dataclasses import dataclass, field
from types import MethodType
from typing import Any

import torch
from diffusers.hooks import ModelHook
from diffusers.hooks.hooks import BaseState, CacheContext, StateManager
from diffusers.utils.torch_utils import unwrap_module
from torch import Tensor, nn

from worldcache.pipelines.layout import LayoutRules
from worldcache.pipelines.levels import NoiseLevels
from worldcache.pipelines.position import AnnouncedSteps, StepSource
from worldcache.pipelines.summary import BranchSummary, Observer, TransformerStep, ignore
from worldcache.pipelines.walk import Walk
from worldcache.policies.registry import AnyPolicy

HOOK_NAME = "worldcache"

_TIMESTEP_NAMES = ("timestep", "timesteps", "t")


class Contexts(StateManager):  # type: ignore[misc]
    """Where diffusers' ``cache_context`` leaves the context of the running call."""

    def __init__(self) -> None:
        super().__init__(BaseState)

    @property
    def current(self) -> CacheContext | None:
        """The context, or ``None`` outside of any."""
        context: CacheContext | None = self._context
        return context


@dataclass
class Branch:
    """One branch of a pipeline call.

    Attributes:
        walk: its current walk; ``None`` before the first step, after the last, and after a failed one.
        decisions: a letter per step.
    """

    walk: Walk | None = None
    decisions: list[str] = field(default_factory=list)


@dataclass
class PipelineCall:
    """All that is remembered of one call of the pipeline.

    Attributes:
        course: what stands for its schedule.
        levels: its noise levels.
        index: the current step.
        made: finished transformer calls of the current step, by name of the context.
        branches: by name of the context and index of the call within the step.
    """

    course: object
    levels: NoiseLevels
    index: int = 0
    made: Counter[str | None] = field(default_factory=Counter)
    branches: dict[tuple[str | None, int], Branch] = field(default_factory=dict)

    def move_to(self, index: int) -> None:
        if index != self.index:
            self.index = index
            self.made.clear()


class CacheHook(ModelHook):  # type: ignore[misc]
    """Answers calls of a transformer from its policy where the policy allows it.

    All state belongs to one call of the pipeline, and is dropped when the next one begins, when diffusers
    resets its hooks at the end of a call, and when the hook is removed.

    Args:
        policy: decides and predicts.
        source: says which step a call belongs to.
        rules: how the transformer's outputs become tokens.
        observer: told of every call that was answered.

    Attributes:
        announced: steps that go before ``source`` while :func:`worldcache.steps` runs.
    """

    _is_stateful = True

    def __init__(
        self, policy: AnyPolicy, source: StepSource, rules: LayoutRules, observer: Observer = ignore
    ) -> None:
        super().__init__()
        self.policy = policy
        self.contexts = Contexts()
        self.announced: AnnouncedSteps | None = None
        self._source = source
        self._rules = rules
        self._observer = observer
        self._call: PipelineCall | None = None

    def initialize_hook(self, module: nn.Module) -> nn.Module:
        self._signature = inspect.signature(type(unwrap_module(module)).forward)
        return module

    def deinitalize_hook(self, module: nn.Module) -> nn.Module:
        """Leave the module without an attribute ``forward`` of its own, if it is the class's again."""
        if vars(module).get("forward") == MethodType(type(module).forward, module):
            del module.forward
        return module

    def reset_state(self, module: nn.Module) -> nn.Module:
        """Free what the policy remembers; the decisions stay for the summary."""
        self.contexts.reset()
        if self._call is not None:
            for branch in self._call.branches.values():
                branch.walk = None
        return module

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """The transformer's output for this call, computed or predicted."""
        arguments = self._signature.bind(module, *args, **kwargs).arguments
        values = list(arguments.values())[1:]
        timestep = next((arguments[name] for name in _TIMESTEP_NAMES if name in arguments), None)
        context = self.contexts.current
        call = self._locate(context, timestep)

        name = None if context is None else context.name
        branch = call.branches.setdefault((name, call.made[name]), Branch())
        signature = _signature_of(arguments)
        walk, branch.walk = branch.walk, None
        if walk is None or not walk.continues(call.index, signature):
            walk = Walk(self.policy, call.levels, call.index, self._rules, signature)
        output, full = walk.take(values[0], lambda: self.fn_ref.original_forward(*args, **kwargs))
        if not walk.done:
            branch.walk = walk
        branch.decisions.append("F" if full else ".")
        call.made[name] += 1
        self._observer(
            TransformerStep(call.course, call.index, full, walk.tokens, walk.drift, walk.fell_back)
        )
        return output

    def summarise(self, transformer: str) -> tuple[BranchSummary, ...]:
        """The branches of the latest call, each with the transformer's name."""
        branches = {} if self._call is None else self._call.branches
        return tuple(
            BranchSummary(transformer, context, call, "".join(branch.decisions))
            for (context, call), branch in branches.items()
            if branch.decisions
        )

    def _locate(self, context: CacheContext | None, timestep: object) -> PipelineCall:
        """The pipeline call that this is part of, a new one if a schedule begins, at the current step."""
        source = self._source if self.announced is None else self.announced
        position = source.locate(context, timestep)
        call = self._call
        if call is None or position.course is not call.course or position.index < call.index:
            call = self._call = PipelineCall(position.course, source.levels())
        call.move_to(position.index)
        return call


def _signature_of(arguments: dict[str, Any]) -> list[tuple[str, object]]:
    """What must not change within a walk: shapes, types and devices of tensors, and switches."""
    parts: list[tuple[str, object]] = []
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            parts.append((name, (value.shape, value.dtype, value.device)))
        elif isinstance(value, bool):
            parts.append((name, value))
        elif isinstance(value, list):
            parts += [(name, entry.shape) for entry in value if isinstance(entry, Tensor)]
    return parts
