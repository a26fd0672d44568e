"""Time and memory of the large models at their real size, with random weights: a GPU is all that it needs.

    python -m worldcache.bench.real_size --output benchmarks/real_size.md

Random weights cost what real ones do, but their outputs say nothing of when caching would compute. So which
steps are FULL is fixed by index: ``worldcache`` with the trigger ``interval``, its predictions and token
classes at their full cost.
"""

from __future__ import annotations

import argparse
import gc
import logging
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import torch

from worldcache.actions import ActionSpace, BoxActionSpace, CameraPoseActionSpace
from worldcache.bench.chunk import ChunkCost, measure_chunk
from worldcache.bench.machine import machine
from worldcache.bench.real_size_models import SUBJECTS, Subject
from worldcache.bench.real_size_report import Line, Report, as_markdown
from worldcache.core import Conditioning, ModelInfo, Observation
from worldcache.engine.errors import is_out_of_memory
from worldcache.engine.rollout import RolloutRequest
from worldcache.errors import InvalidInput, UnknownName, WorldCacheError
from worldcache.models.base import WorldModel
from worldcache.models.registry import DTYPES
from worldcache.policies.registry import make_policy

logger = logging.getLogger(__name__)

WARM_STEPS = 4
"""Denoise steps of the chunk that is run first and not measured."""


def measure(
    name: str,
    subject: Subject,
    *,
    device: torch.device,
    dtype: torch.dtype,
    seed: int = 0,
    num_steps: int = 50,
    repeats: int = 1,
) -> Report:
    """One chunk of a model, uncached and with each pattern, ``repeats`` times in turn.

    A model that the device has no memory for leaves a report that says so.

    Raises:
        WorldCacheError: the model cannot be made, or a chunk fails for another reason.
    """
    lines: tuple[Line, ...] = ()
    report = Report(name, seed, num_steps, repeats)
    try:
        logger.info("%s: making the weights", name)
        model = subject.make(device, dtype, seed)
        report = replace(report, sizes=_sizes(model))
        request = _request(model.info, subject, num_steps)
        logger.info("%s: warming up", name)
        model.warm()
        measure_chunk(model, replace(request, num_inference_steps=min(num_steps, WARM_STEPS)))
        policies = {"uncached": make_policy("none")} | {p.name: p.policy() for p in subject.patterns}
        costs: dict[str, list[ChunkCost]] = {label: [] for label in policies}
        for repeat in range(repeats):
            for label, policy in policies.items():
                logger.info("%s: %s, %d of %d", name, label, repeat + 1, repeats)
                costs[label].append(measure_chunk(model, replace(request, policy=policy)))
        lines = tuple(_line(label, costs[label], costs["uncached"]) for label in costs)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return replace(report, failure=f"It does not fit: {_first_line(error)}")
    return replace(report, lines=lines)


def _line(label: str, mine: Sequence[ChunkCost], uncached: Sequence[ChunkCost]) -> Line:
    """Medians over repeats; the speed-up is the median of the ratios within a repeat."""

    def median(value: Callable[[ChunkCost], float]) -> float:
        return statistics.median(map(value, mine))

    peaks = [cost.peak_bytes for cost in mine if cost.peak_bytes is not None]
    return Line(
        label,
        mine[0].decisions,
        prepare=median(lambda cost: cost.prepare),
        denoise=median(lambda cost: cost.denoise),
        decode=median(lambda cost: cost.decode),
        full_step=median(lambda cost: cost.full_step),
        speed_up=statistics.median(b.denoise / a.denoise for a, b in zip(mine, uncached, strict=True)),
        peak_bytes=max(peaks, default=None),
    )


def _request(info: ModelInfo, subject: Subject, num_steps: int) -> RolloutRequest:
    """One whole chunk of a picture of noise."""
    conditioning = Conditioning(task=subject.task)
    rng, (height, width) = np.random.default_rng(0), info.resolution
    frames = rng.integers(0, 256, (1, height, width, 3), np.uint8)
    depth = rng.uniform(1, 10, (1, height, width)).astype(np.float32) if subject.depth else None
    actions = _actions(info.action_space, info.chunk_frames)
    return RolloutRequest(
        observation=Observation(frames=frames, depth=depth),
        actions=info.action_space.parse(actions),
        policy=make_policy("none"),
        seed=0,
        num_inference_steps=num_steps,
        guidance_scale=info.task(conditioning).guidance_scale,
        conditioning=conditioning,
    )


def _actions(space: ActionSpace, frames: int) -> list[object]:
    """A camera that moves forward slowly, the middle of a box, or a model's first action."""
    if isinstance(space, CameraPoseActionSpace):
        across, down, last = [1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]
        return [[across, down, [0.0, 0.0, 1.0, 0.01 * frame], last] for frame in range(frames)]
    if isinstance(space, BoxActionSpace):
        return [[(low + high) / 2 for low, high in zip(space.low, space.high, strict=True)]] * frames
    return [0] * frames


def _sizes(model: WorldModel) -> Mapping[str, str]:
    """What was measured, in words."""
    shape = model.latent_shape(model.info.chunk_frames)
    view, (height, width) = model.tokens(shape), model.info.resolution
    tokens = " + ".join(
        f"{count} {name}" for name, count in zip(view.layout.names, view.layout.counts, strict=True)
    )
    return {
        "frames": f"{model.info.chunk_frames + model.info.observed_frames} of {height}x{width}",
        "weights": f"{model.memory_bytes / 2**30:.2f} GiB",
        "latent": "x".join(map(str, shape)),
        "tokens": f"{tokens}, {view.width} wide",
    }


def _first_line(error: BaseException) -> str:
    cause = error.__cause__ or error
    return (str(cause).splitlines() or [type(cause).__name__])[0]


def run(
    names: Sequence[str],
    subjects: Mapping[str, Subject],
    *,
    device: str,
    dtype: str,
    seed: int = 0,
    num_steps: int = 50,
    repeats: int = 1,
) -> str:
    """Measure models one after the other; returns the report as Markdown.

    Raises:
        InvalidInput: a name, the device or the dtype cannot be used.
    """
    for name in names:
        if name not in subjects:
            raise UnknownName("model", name, subjects, param="models")
    if dtype not in DTYPES:
        raise UnknownName("dtype", dtype, DTYPES, param="dtype")
    place = torch.device(device)
    if place.type == "cuda" and not torch.cuda.is_available():
        raise InvalidInput("there is no CUDA device here; run this where one is", param="device")
    reports = []
    for name in names:
        reports.append(
            measure(
                name,
                subjects[name],
                device=place,
                dtype=DTYPES[dtype],
                seed=seed,
                num_steps=num_steps,
                repeats=repeats,
            )
        )
        gc.collect()
        if place.type == "cuda":
            torch.cuda.empty_cache()
    return as_markdown(reports, _versions(place), dtype)


def _versions(device: torch.device) -> str:
    diffusers = import_module("diffusers").__version__
    memory = ""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        memory = f", {properties.total_memory / 2**30:.1f} GiB of device memory, CUDA {torch.version.cuda}"
    return f"{machine()}{memory}, diffusers {diffusers}"


def main(argv: Sequence[str] | None = None, subjects: Mapping[str, Subject] = SUBJECTS) -> int:
    """The command; returns the exit code, 2 for whatever the caller can put right."""
    parser = argparse.ArgumentParser(prog="python -m worldcache.bench.real_size", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--output", type=Path, required=True, help="Markdown file to write")
    parser.add_argument("--device", default="cuda", help="where torch should put it (default: cuda)")
    parser.add_argument("--dtype", default="bfloat16", help="of weights and arithmetic (default: bfloat16)")
    parser.add_argument("--models", default=",".join(subjects), help="which, divided by commas")
    parser.add_argument("--steps", type=int, default=50, help="denoise steps (default: 50)")
    parser.add_argument("--repeats", type=int, default=1, help="chunks of each kind (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights (default: 0)")
    given = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        text = run(
            given.models.split(","),
            subjects,
            device=given.device,
            dtype=given.dtype,
            seed=given.seed,
            num_steps=given.steps,
            repeats=given.repeats,
        )
    except WorldCacheError as error:
        logger.error("%s", error)
        return 2
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
