"""One chunk, step by step, with the time and memory of each of its parts.

Goes the way that the engine goes with a rollout that is alone, and stops the clock between the parts.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch

from worldcache.core import RolloutEnded, RolloutEvent
from worldcache.engine.decode import Job
from worldcache.engine.rollout import Rollout, RolloutRequest
from worldcache.models.base import WorldModel


@dataclass(frozen=True)
class ChunkCost:
    """What a chunk took. Times in seconds.

    Attributes:
        prepare: observation and conditions, encoders included.
        denoise: all steps, policy and sampler included.
        decode: latents to frames on the host.
        full_steps: each FULL step: backbone, policy and the read of its evidence, and whatever cached steps
            the device still had to finish.
        decisions: one letter a step, ``F`` computed or ``.`` predicted.
        peak_bytes: most device memory that tensors took meanwhile, weights included; ``None`` on the CPU.
    """

    prepare: float
    denoise: float
    decode: float
    full_steps: tuple[float, ...]
    decisions: str
    peak_bytes: int | None

    @property
    def full_step(self) -> float:
        """The median of a FULL step."""
        return statistics.median(self.full_steps)


@torch.inference_mode()
def measure_chunk(model: WorldModel, request: RolloutRequest) -> ChunkCost:
    """Run a request that takes one chunk.

    Raises:
        ValueError: it takes several.
        Exception: whatever the model raises; a lack of memory among them.
    """
    if model.info.chunks(len(request.actions)) != 1:
        raise ValueError(f"the request must take one chunk, at most {model.info.chunk_frames} actions")
    ended: list[RolloutEnded] = []
    jobs: list[Job] = []

    def listen(event: RolloutEvent) -> None:
        if isinstance(event, RolloutEnded):
            ended.append(event)

    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(model.device)
    rollout = Rollout(model, request, listen)
    began = _now(model.device)
    rollout.start(lambda job, priority: jobs.append(job))
    prepared = _now(model.device)
    full_steps = []
    while not rollout.done:
        full_steps.append(_full_step(model, rollout))
    denoised = _now(model.device)
    for job in jobs:
        job()
    decoded = _now(model.device)
    rollout.end("succeeded")
    jobs[-1]()
    if ended[0].error is not None:
        raise ended[0].error
    peak = torch.cuda.max_memory_allocated(model.device) if model.device.type == "cuda" else None
    return ChunkCost(
        prepared - began,
        denoised - prepared,
        decoded - denoised,
        tuple(full_steps),
        ended[0].stats.chunks[0].decisions,
        peak,
    )


def _full_step(model: WorldModel, rollout: Rollout) -> float:
    """Compute one FULL step and the streak after it; returns the seconds until its evidence was read."""
    began = time.perf_counter()
    output = model.evaluate(rollout.rows())
    evidence = rollout.take(model.tokens(output.shape[1:]).to_tokens(output)).tolist()
    seconds = time.perf_counter() - began
    rollout.advance(evidence, seconds)
    return seconds


def _now(device: torch.device) -> float:
    """The time at which the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
