"""Caches of other projects on the same backbone: diffusers' hooks and cache-dit.

They work inside the transformer, keep their state on it and decide for a whole batch at once, so that
they are driven in lockstep and removed after every batch. What they skip is a part of a call: their
"FULL steps" are the share of the blocks' linear layers that were evaluated, times the number of steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from worldcache.bench.lockstep import denoise_lockstep
from worldcache.bench.settings import Setting
from worldcache.errors import InvalidInput, UnknownName
from worldcache.models.base import WorldModel
from worldcache.training.evaluate import Sample

Enable: TypeAlias = Callable[[Any, int, dict[str, Any]], Any]
"""Puts hooks on a transformer for a number of steps with parameters; what it returns takes them off."""

HIDDEN_LAYERS = r"transformer_blocks\.\d+\.(attn|ff)"
"""What TaylorSeer extrapolates: the outputs of attention and feed-forward, as in its paper."""


def transformer_of(model: WorldModel) -> Any:
    """The diffusers transformer of a model.

    Raises:
        InvalidInput: the model has none.
    """
    transformer = getattr(model, "transformer", None)
    if transformer is None or not hasattr(transformer, "transformer_blocks"):
        raise InvalidInput(f"model {model.info.id!r} has no diffusers transformer to hook into")
    return transformer


def generate_hooked(
    model: WorldModel,
    samples: Sequence[Sample],
    hook: str,
    parameters: Mapping[str, Any],
    setting: Setting,
    *,
    num_steps: int,
    batch: int,
    seed: int,
) -> tuple[list[Tensor], float]:
    """Final latents of the samples' first chunks under ``hook``, and the mean of its FULL steps.

    Args:
        hook: one of ``HOOKS``.
        parameters: its own; for ``magcache`` with ``mag_ratios``, see :func:`residual_ratios`.
        batch: chunks that share each decision.

    Raises:
        UnknownName: there is no such hook.
        InvalidInput: the setting has guidance, or the model cannot be hooked.
    """
    if hook not in HOOKS:
        raise UnknownName("hook", hook, HOOKS)
    if setting.guidance_scale != 1.0:
        raise InvalidInput("hooks are driven without guidance only")
    transformer = transformer_of(model)
    latents: list[Tensor] = []
    shares = []
    for first in range(0, len(samples), batch):
        part = samples[first : first + batch]
        with counting(transformer) as share, enabled(transformer, hook, num_steps, dict(parameters)):
            latents += denoise_lockstep(model, part, setting, num_steps=num_steps, seed=seed + first)
        shares += [share() / num_steps] * len(part)
    return latents, num_steps * sum(shares) / len(shares)


@contextmanager
def enabled(transformer: Any, hook: str, num_steps: int, parameters: dict[str, Any]) -> Iterator[None]:
    """The transformer with a hook on it."""
    remove = HOOKS[hook](transformer, num_steps, parameters)
    try:
        with transformer.cache_context("cond"):
            yield
    finally:
        remove()


@contextmanager
def counting(transformer: Any) -> Iterator[Callable[[], float]]:
    """Counts evaluations of the blocks' linear layers, in units of a whole call."""
    sizes = {
        layer: layer.weight.numel()
        for block in transformer.transformer_blocks
        for part in (block.attn, block.ff)
        for layer in part.modules()
        if isinstance(layer, nn.Linear)
    }
    total = 0

    def count(layer: nn.Module, _: Any) -> None:
        nonlocal total
        total += sizes[layer]  # type: ignore[index]

    handles = [layer.register_forward_pre_hook(count) for layer in sizes]
    try:
        yield lambda: total / sum(sizes.values())
    finally:
        for handle in handles:
            handle.remove()


def residual_ratios(
    model: WorldModel, samples: Sequence[Sample], setting: Setting, num_steps: int, seed: int
) -> list[float]:
    """MagCache's ratios for the hidden states: mean over tokens of |residual| now over before.

    The hook's own calibration prints its result, so it is measured here.
    """
    blocks = transformer_of(model).transformer_blocks
    entered: list[Tensor] = []
    norms: list[Tensor] = []
    handles = [
        blocks[0].register_forward_pre_hook(lambda module, args: entered.append(args[0])),
        blocks[-1].register_forward_hook(
            lambda module, args, output: norms.append((output - entered.pop()).norm(dim=-1))
        ),
    ]
    try:
        denoise_lockstep(model, samples, setting, num_steps=num_steps, seed=seed)
    finally:
        for handle in handles:
            handle.remove()
    later = [(b / (a + 1e-8)).mean().item() for a, b in pairwise(norms)]
    return [1.0, *later]


def _with_mixin(transformer: Any, config: Any) -> Callable[[], None]:
    from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry

    block = type(transformer.transformer_blocks[0])
    TransformerBlockRegistry.register(
        block,
        TransformerBlockMetadata(return_hidden_states_index=0, return_encoder_hidden_states_index=None),
    )
    transformer.enable_cache(config)
    disable: Callable[[], None] = transformer.disable_cache
    return disable


def _taylorseer(transformer: Any, num_steps: int, parameters: dict[str, Any]) -> Callable[[], None]:
    from diffusers.hooks import TaylorSeerCacheConfig

    return _with_mixin(
        transformer,
        TaylorSeerCacheConfig(
            taylor_factors_dtype=torch.float32, cache_identifiers=[HIDDEN_LAYERS], **parameters
        ),
    )


def _first_block(transformer: Any, num_steps: int, parameters: dict[str, Any]) -> Callable[[], None]:
    from diffusers.hooks import FirstBlockCacheConfig

    return _with_mixin(transformer, FirstBlockCacheConfig(**parameters))


def _magcache(transformer: Any, num_steps: int, parameters: dict[str, Any]) -> Callable[[], None]:
    from diffusers.hooks import MagCacheConfig

    return _with_mixin(transformer, MagCacheConfig(num_inference_steps=num_steps, **parameters))


def _cache_dit(transformer: Any, num_steps: int, parameters: dict[str, Any]) -> Callable[[], None]:
    import cache_dit
    from cache_dit.logger import suppress_loggers

    suppress_loggers(["CACHE_DIT", "cache_dit*"])
    adapter = cache_dit.BlockAdapter(
        transformer=transformer,
        blocks=transformer.transformer_blocks,
        forward_pattern=cache_dit.ForwardPattern.Pattern_3,
        has_separate_cfg=False,
    )
    config = cache_dit.DBCacheConfig(
        Fn_compute_blocks=1,
        Bn_compute_blocks=0,
        max_warmup_steps=3,
        num_inference_steps=num_steps,
        **parameters,
    )
    cache_dit.enable_cache(adapter, cache_config=config)
    return lambda: cache_dit.disable_cache(adapter)


HOOKS: Mapping[str, Enable] = MappingProxyType(
    {
        "taylorseer": _taylorseer,
        "first_block": _first_block,
        "magcache": _magcache,
        "cache_dit": _cache_dit,
    }
)
