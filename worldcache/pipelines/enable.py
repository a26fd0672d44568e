"""Caching for any diffusers pipeline in one line.

pipe = DiffusionPipeline.from_pretrained(...)
worldcache.enable(pipe, policy="worldcache", max_skip=4)
video = pipe(...)
worldcache.summary(pipe).skip_ratio
worldcache.disable(pipe)
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from diffusers.hooks import HookRegistry
from torch import nn

from worldcache.errors import InvalidInput
from worldcache.pipelines.hook import HOOK_NAME, CacheHook
from worldcache.pipelines.layout import layout_rules
from worldcache.pipelines.levels import NoiseLevels
from worldcache.pipelines.position import AnnouncedSteps, NoSteps, SchedulerSteps, StepSource
from worldcache.pipelines.summary import CacheSummary, Observer, ignore
from worldcache.policies import Schedule, TokenLayout, make_policy
from worldcache.policies.registry import AnyPolicy, describe
from worldcache.policies.teacache import TeaCachePolicy

_TRANSFORMER = re.compile(r"transformer(_\d+)?")
_TARGET = "pipe_or_transformer"


def enable(
    pipe_or_transformer: object,
    policy: str | AnyPolicy = "worldcache",
    *,
    scheduler: object | None = None,
    layout: str | None = None,
    patch_size: int | Sequence[int] | None = None,
    observer: Observer = ignore,
    **parameters: object,
) -> None:
    """Let a policy answer those calls of a pipeline's transformers that it can predict.

    Args:
        pipe_or_transformer: a pipeline, all of whose transformers are enabled (``transformer``,
            ``transformer_2``), or a transformer alone.
        policy: name of a policy, or a policy.
        scheduler: for a transformer alone: the scheduler that its loop steps. Without it, the loop
            must go through :func:`steps`.
        layout: axes of the output, as letters: B batch, T frames, H and W space, N tokens, C channels.
            Inferred from its shape and the transformer's config if left out.
        patch_size: latent pixels of a token, one number or (frames, rows, columns); the
            transformer's own if left out.
        observer: told of every call of a transformer, once it is answered, in the calling thread.
        parameters: parameters of the policy.

    Raises:
        UnknownName: no policy has this name.
        InvalidInput: an argument cannot be used, or the cache is enabled already; ``param`` names it.
    """
    modules = transformers_of(pipe_or_transformer)
    chosen = _choose(policy, parameters)
    alone = isinstance(pipe_or_transformer, nn.Module)
    if scheduler is not None and not alone:
        raise InvalidInput("a pipeline has its own scheduler; leave it out", param="scheduler")
    if not alone and getattr(pipe_or_transformer, "scheduler", None) is None:
        raise InvalidInput("the pipeline has no scheduler; enable its transformer alone", param=_TARGET)
    if alone and scheduler is not None and not hasattr(scheduler, "timesteps"):
        raise InvalidInput("a diffusers scheduler is needed, with timesteps", param="scheduler")
    for name, module in modules.items():
        if _hook(module) is not None:
            raise InvalidInput(
                f"{name} has a cache already; call worldcache.disable first",
                param=_TARGET,
                code="already_enabled",
            )
    rules = {name: layout_rules(module, layout, patch_size) for name, module in modules.items()}
    owner = scheduler if alone else pipe_or_transformer
    for name, module in modules.items():
        source: StepSource = NoSteps() if owner is None else SchedulerSteps(owner)
        hook = CacheHook(chosen, source, rules[name], observer)
        HookRegistry.check_if_exists_or_initialize(module).register_hook(hook, HOOK_NAME)


def disable(pipe_or_transformer: object) -> None:
    """Remove the cache: the transformers are as they were before :func:`enable`.

    Raises:
        InvalidInput: there is no cache; ``param`` is ``pipe_or_transformer``.
    """
    for module in _enabled(pipe_or_transformer):
        HookRegistry.check_if_exists_or_initialize(module).remove_hook(HOOK_NAME, recurse=False)


def summary(pipe_or_transformer: object) -> CacheSummary:
    """What the cache did in the latest call of the pipeline.

    Raises:
        InvalidInput: there is no cache; ``param`` is ``pipe_or_transformer``.
    """
    hooks = _enabled(pipe_or_transformer)
    names = {id(module): name for name, module in transformers_of(pipe_or_transformer).items()}
    branches = [branch for module, hook in hooks.items() for branch in hook.summarise(names[id(module)])]
    return CacheSummary(describe(next(iter(hooks.values())).policy), tuple(branches))


def steps(
    transformer: nn.Module, sigmas: Sequence[float], alphas: Sequence[float] | None = None
) -> Iterator[int]:
    """Go through the denoise steps of a loop that no diffusers scheduler steps.

        for index in worldcache.steps(transformer, sigmas):
            velocity = transformer(latent, timestep=..., ...).sample
            ...

    Args:
        transformer: an enabled transformer.
        sigmas: noise level of each step, falling.
        alphas: signal level of each step; ``1 - sigma`` if left out.

    Yields:
        The index of each step. Calls of the transformer belong to the step that was yielded last.

    Raises:
        InvalidInput: there is no cache, or the levels do not fit; ``param`` names the argument.
    """
    (hook,) = _enabled(transformer).values()
    noise = _levels(sigmas, "sigmas")
    signal = tuple(1 - sigma for sigma in noise) if alphas is None else _levels(alphas, "alphas")
    if len(signal) != len(noise):
        raise InvalidInput(f"give {len(noise)} alphas, one for each sigma", param="alphas")
    return _announce(hook, AnnouncedSteps(NoiseLevels(noise, signal)))


def _announce(hook: CacheHook, announced: AnnouncedSteps) -> Iterator[int]:
    hook.announced = announced
    try:
        for index in range(len(announced.levels())):
            announced.index = index
            yield index
    finally:
        if hook.announced is announced:
            hook.announced = None


def _levels(levels: Sequence[float], param: str) -> tuple[float, ...]:
    values = tuple(float(level) for level in levels)
    if not values or not all(map(math.isfinite, values)):
        raise InvalidInput(f"{param} must be finite numbers, one per step", param=param)
    return values


def _choose(policy: str | AnyPolicy, parameters: Mapping[str, object]) -> AnyPolicy:
    """The policy, if it can work on nothing but a transformer's outputs and latents."""
    if isinstance(policy, str):
        chosen = make_policy(policy, **parameters)
    elif parameters:
        raise InvalidInput("parameters need the name of a policy, not a policy", param="policy")
    else:
        chosen = policy
    if isinstance(chosen, TeaCachePolicy):
        raise InvalidInput(
            "policy 'teacache' needs the transformer's modulated input, which a pipeline does not offer; "
            "choose another policy",
            param="policy",
            code="not_supported",
        )
    chosen.reset(Schedule((1.0, 0.5), (0.0, 0.5), TokenLayout(("sample",), (1,))))  # a calibration may lack
    return chosen


def transformers_of(target: object) -> dict[str, nn.Module]:
    """The transformers of a pipeline by name, or a transformer alone.

    Raises:
        InvalidInput: there is none; ``param`` is ``pipe_or_transformer``.
    """
    if isinstance(target, nn.Module):
        return {"transformer": target}
    components: Any = getattr(target, "components", None)
    found = {
        name: module
        for name, module in (components.items() if isinstance(components, Mapping) else ())
        if _TRANSFORMER.fullmatch(name) and isinstance(module, nn.Module)
    }
    if not found:
        raise InvalidInput(
            f"{type(target).__name__} has no transformer; give a diffusers pipeline that has one, "
            "or a transformer",
            param=_TARGET,
        )
    return found


def _enabled(target: object) -> dict[nn.Module, CacheHook]:
    """The transformers that have a cache, each with its hook."""
    hooks = {module: _hook(module) for module in transformers_of(target).values()}
    found = {module: hook for module, hook in hooks.items() if hook is not None}
    if not found:
        raise InvalidInput(
            "there is no cache here; call worldcache.enable first", param=_TARGET, code="not_enabled"
        )
    return found


def _hook(module: nn.Module) -> CacheHook | None:
    registry = getattr(module, "_diffusers_hook", None)
    hook = None if registry is None else registry.get_hook(HOOK_NAME)
    return hook if isinstance(hook, CacheHook) else None
