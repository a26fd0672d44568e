"""What control costs: time spent in a policy, and its floating-point work on larger models' shapes.

The time is measured on the benchmark's own model. Work is counted on random tensors of the token counts
of two published models: every operation counts as many units as the larger of what it reads and what
it writes has elements (a sort: times log2 of its length; a matrix product: two for each multiplication).
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from worldcache.bench.entries import AETHER, VOYAGER, Entry
from worldcache.bench.run import Bench
from worldcache.bench.store import Key, Record
from worldcache.bench.wrapper import BenchWorldModel
from worldcache.errors import WorldCacheError
from worldcache.policies.base import Policy, Schedule, StepInput, TokenLayout
from worldcache.policies.registry import AnyPolicy
from worldcache.training.evaluate import Sample, generate

OVERHEAD = "overhead"
MEASURED = r"none|worldcache, (12 FULL|.*preset)|forecast, (7|12) FULL|.*, 12 FULL|preset .*"
"""Labels of what is measured."""

CHUNKS = 8
"""Chunks that are denoised together to time control in a batch."""

ALONE = 3
"""Chunks that are denoised one after the other to time it without."""

VERBS = ("reset", "should_compute", "learn", "plan", "predict")


@dataclass(frozen=True)
class Shape:
    """A published model, as far as control and one backbone call are concerned.

    Attributes:
        tokens: of the output of one guidance branch, by modality.
        width: of an output token.
        branches: guidance branches.
        backbone_flops: of one backbone call, all branches.
    """

    tokens: tuple[int, ...]
    width: int
    branches: int
    backbone_flops: float


def transformer_flops(parameters: float, tokens: int, layers: int, width: int) -> float:
    """``2 parameters tokens`` for the linear layers and ``4 layers tokens^2 width`` for attention."""
    return 2.0 * parameters * tokens + 4.0 * layers * tokens**2 * width


SHAPES: Mapping[str, Shape] = MappingProxyType(
    {
        # 11 latent frames of 60 x 90, patches of one latent pixel for each of three modalities; the
        # backbone sees patches of 2 x 2 and 226 tokens of text.
        "Aether-5B": Shape(
            (11 * 60 * 90,) * 3,
            24,
            2,
            2 * transformer_flops(12 * 3072**2 * 42, 11 * 30 * 45 + 226, 42, 3072),
        ),
        # 13 latent frames of 130 x 96 (RGB above depth and 2 rows between them), patches of 2 x 2.
        "Voyager-13B": Shape((13 * 65 * 48,), 64, 2, 2 * transformer_flops(13.3e9, 13 * 65 * 48, 60, 3072)),
    }
)


class CountWork(TorchDispatchMode):
    """Adds up the work of all operations inside, in ``total``."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        outputs = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        self.total += work(func.overloadpacket.__name__, inputs, outputs)
        return result


FREE = frozenset(
    "view _unsafe_view reshape t transpose permute select slice unsqueeze squeeze expand detach alias "
    "as_strided unbind split split_with_sizes empty lift_fresh".split()
)
"""Operations that move no data."""

PRODUCTS = frozenset({"mm", "bmm", "addmm", "baddbmm", "mv", "dot"})
SORTS = frozenset({"sort", "topk", "kthvalue", "argsort", "median", "nanmedian", "quantile"})


def work(name: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> float:
    """Units of one operation."""
    if name in FREE:
        return 0.0
    size = max((x.numel() for x in (*inputs, *outputs)), default=0)
    if name in PRODUCTS:
        return 2.0 * max(x.numel() for x in outputs) * inputs[-2].shape[-1]
    if name in SORTS:
        return size * math.log2(max(2, inputs[0].shape[-1] if inputs[0].ndim else 1))
    return float(size)


@torch.inference_mode()
def count_work(policy: AnyPolicy, shape: Shape, num_steps: int, seed: int = 0) -> dict[str, float]:
    """The policy's work over a chunk of random outputs, next to that of the backbone.

    Outputs move smoothly from one random tensor to another with a little noise, so that a policy
    which measures finds something to skip.

    Returns:
        ``steps_full``; ``full`` and ``cached``, the work of the dearest FULL and CACHED step;
        ``share``, all work over that of the backbone calls of the FULL steps.
    """
    generator = torch.Generator().manual_seed(seed)
    layout = TokenLayout(tuple(f"m{i}" for i in range(len(shape.tokens))), shape.tokens, shape.branches)
    first, second, third = (
        torch.randn(layout.num_tokens, shape.width, generator=generator) for _ in range(3)
    )
    sigmas = tuple(1 - step / num_steps for step in range(num_steps))
    state = policy.reset(Schedule(sigmas, tuple(1 - sigma for sigma in sigmas), layout))
    spent: dict[bool, list[float]] = {True: [], False: []}
    for step, sigma in enumerate(sigmas):
        angle = math.pi / 2 * (1 - sigma)
        output = first * math.cos(angle) + second * math.sin(angle) + third * (0.05 * math.sin(5 * angle))
        inputs = StepInput(lambda latent=third * sigma: latent, lambda seen=output: seen)  # type: ignore[misc]
        with CountWork() as counted:
            full = policy.should_compute(state, step, inputs)
            if full:
                evidence = policy.learn(state, step, output, inputs)
                policy.plan(state, evidence.tolist())
            else:
                policy.predict(state, step, inputs)
        spent[full].append(counted.total)
    total = sum(spent[True]) + sum(spent[False])
    return {
        "steps_full": len(spent[True]),
        "full": max(spent[True]),
        "cached": max(spent[False], default=0.0),
        "share": total / len(spent[True]) / shape.backbone_flops,
        "backbone": shape.backbone_flops,
    }


class Clock:
    """Adds up seconds."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its time added up."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - began

        return timed


def timed_policy(policy: AnyPolicy, clock: Clock) -> AnyPolicy:
    """The policy, the time of its verbs added up on ``clock``."""
    verbs = {verb: staticmethod(clock.around(getattr(policy, verb))) for verb in VERBS}
    timed: type[Policy[Any, Any]] = type(f"Timed{type(policy).__name__}", (type(policy),), verbs)
    return timed(policy.config)


def measure_overhead(
    bench: Bench,
    entries: Sequence[Entry],
    *,
    only: str = "",
    progress: Callable[[str, int, int], None] = lambda label, done, total: None,
) -> list[Record]:
    """Time and work of control, entry by entry."""
    chosen = [e for e in (*entries, VOYAGER, AETHER) if re.fullmatch(MEASURED, e.label)]
    chosen = list({e.label: e for e in chosen if e.policy != "none" and re.search(only, e.label)}.values())
    records = []
    for index, entry in enumerate(chosen):
        progress(f"overhead: {entry.label}", index, len(chosen))
        key = Key(bench.model.info.id, bench.setting.name, OVERHEAD, entry.label)
        terms = {
            "run": {"weights": bench.digest, "chunks": CHUNKS, "steps": bench.num_steps},
            "spec": entry.spec(),
        }
        found = bench.store.find(key, terms)
        if found is None:
            about: dict[str, Any] = {"family": entry.family, "policy": entry.policy}
            try:
                values = _overhead(bench, entry)
            except WorldCacheError as error:
                values = {"failure": str(error)}
            found = bench.store.add(key, terms, {**about, **values})
        records.append(found)
    return records


def _overhead(bench: Bench, entry: Entry) -> dict[str, Any]:
    parameters = bench.settle(entry)
    policy = bench.policy(entry, parameters)
    samples = bench.material.chunks().first(CHUNKS).samples
    batched, full = time_control(bench, policy, [samples])
    alone, _ = time_control(bench, policy, [[sample] for sample in samples[:ALONE]])
    return {
        "parameters": parameters,
        "steps_total": bench.num_steps,
        "steps_full": full,
        "time_share": batched,
        "time_share_alone": alone,
        "work": {name: count_work(policy, shape, bench.num_steps) for name, shape in SHAPES.items()},
    }


def time_control(bench: Bench, policy: AnyPolicy, batches: Sequence[Sequence[Sample]]) -> tuple[float, float]:
    """Time in the policy over time of the backbone calls, and FULL steps per chunk.

    Args:
        batches: samples that share backbone calls.
    """
    control, backbone = Clock(), Clock()
    model = BenchWorldModel(bench.model)
    model.evaluate = backbone.around(model.evaluate)  # type: ignore[method-assign]
    timed = timed_policy(policy, control)
    chunks = [
        chunk
        for samples in batches
        for _, end in generate(
            model, samples, timed, num_inference_steps=bench.num_steps, max_batch=max(2, len(samples))
        )
        for chunk in end.stats.chunks
    ]
    return control.seconds / backbone.seconds, sum(chunk.steps_full for chunk in chunks) / len(chunks)
