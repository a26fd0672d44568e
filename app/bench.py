"""``worldcache bench``: policies against each other on the same work, in one run."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import worldcache

ACTIONS = ("MOVE_LEFT",) * 8 + ("ATTACK",) * 8 + ("MOVE_RIGHT",) * 16
"""What the benchmark plays unless told otherwise: thirty-two frames of ``doom``."""


def add_bench(commands: Any) -> None:
    """Add the subcommand to the command line."""
    parser = commands.add_parser("bench", help="time the policies against the uncached rollout")
    parser.set_defaults(command=_bench, extra="server")
    parser.add_argument("--model", default="doom", help="name of a model (default: doom)")
    parser.add_argument("--path", type=Path, help="folder of other weights in the model's layout")
    parser.add_argument("--device", default="cpu", help="where torch puts the model (default: cpu)")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16")
    parser.add_argument("--steps", type=int, default=50, help="denoise steps per chunk (default: 50)")
    parser.add_argument("--repeats", type=int, default=5, help="rollouts of each policy (default: 5)")
    parser.add_argument("--output", type=Path, help="write the table to this .md file, and .json beside it")


def _bench(arguments: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.progress import Progress

    from worldcache.bench.compare import Contender, as_json, as_markdown, compare, machine

    console = Console()
    model = worldcache.load_model(
        arguments.model, path=arguments.path, device=arguments.device, dtype=arguments.dtype
    )
    model.warm()
    contenders = [
        Contender("worldcache", "worldcache", {}),
        Contender(
            "worldcache, Aether's preset",
            "worldcache",
            {"max_skip": 2, "drift_threshold": 0.2, "warmup_steps": 10},
        ),
        Contender("taylor, order 1", "taylor", {}),
        Contender("taylor, order 2", "taylor", {"order": 2}),
        Contender("interval", "interval", {}),
    ]
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("rollouts", total=None)
        results = compare(
            model,
            contenders,
            actions=ACTIONS,
            num_inference_steps=arguments.steps,
            repeats=arguments.repeats,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    heading = (
        f"`{model.info.id}`, {len(ACTIONS)} frames, {arguments.steps} steps, {arguments.dtype}, "
        f"{arguments.repeats} rollouts each; times are `denoise_ms`, medians of ratios within one repeat.\n"
        f"{machine()}.\n"
    )
    table = f"{heading}\n{as_markdown(results)}\n"
    console.print(table, highlight=False, soft_wrap=True, markup=False)
    if arguments.output:
        arguments.output.write_text(table)
        facts = {"machine": machine(), "steps": arguments.steps, "results": as_json(results)}
        arguments.output.with_suffix(".json").write_text(json.dumps(facts, indent=2) + "\n")
