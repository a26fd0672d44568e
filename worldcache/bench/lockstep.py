"""Denoises many chunks step by step together, for whatever hooks into the model instead of the engine.

Cache hooks keep their state on the module and count its calls, so that all chunks of a batch must be
at the same step, and a batch must be finished before the next one begins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from worldcache.bench.settings import Setting
from worldcache.models.base import Row, WorldModel
from worldcache.sampler import chunk_generator
from worldcache.training.evaluate import Sample

Watcher: TypeAlias = Callable[[int, Sequence[Row], Tensor], None]
"""Told of a step, its rows and their outputs."""


@torch.inference_mode()
def denoise_lockstep(
    model: WorldModel,
    samples: Sequence[Sample],
    setting: Setting,
    *,
    num_steps: int,
    seed: int = 0,
    watch: Watcher = lambda step, rows, outputs: None,
) -> list[Tensor]:
    """The final latent of each sample's first chunk, without guidance; noise as in the engine's runs."""
    generators = [chunk_generator(seed + index, 0) for index in range(len(samples))]
    size = model.info.chunk_frames
    conditions = [
        model.condition(
            model.begin(setting.observe(sample.observation)),
            sample.commanded[:size],
            generator,
        )
        for sample, generator in zip(samples, generators, strict=True)
    ]
    latents = [
        model.initial_latent(condition, size, generator)
        for condition, generator in zip(conditions, generators, strict=True)
    ]
    samplers = [model.sampler(num_steps) for _ in samples]
    for step in range(num_steps):
        timestep = samplers[0].timesteps[step]
        rows = [Row(x, timestep, condition) for x, condition in zip(latents, conditions, strict=True)]
        outputs = model.evaluate(rows)
        watch(step, rows, outputs)
        latents = [
            sampler.step(step, output, x, generator)
            for sampler, output, x, generator in zip(samplers, outputs, latents, generators, strict=True)
        ]
    return latents
