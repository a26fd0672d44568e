"""``worldcache calibrate``: measure what policies need to know of a model, and choose its presets."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import worldcache
from app.bench import RESULTS, subjects, weights_of
from app.options import make_console, progress_bars
from worldcache.errors import InvalidInput

CHUNKS = 8
"""Uncached chunks that are recorded."""


def add_calibrate(commands: Any) -> None:
    """Add the subcommand to the command line."""
    parser = commands.add_parser(
        "calibrate",
        help="measure what policies need to know of a model, and choose its presets",
        description="Writes calibration.json into the model's folder: magnitude ratios and coefficients "
        "from uncached held-out chunks; presets from the results of `worldcache bench`, if there are any.",
    )
    parser.set_defaults(command=_calibrate, extra="bench")
    parser.add_argument("model", help="name of a model, as in doom")
    parser.add_argument("--path", type=Path, help="folder of other weights in the model's layout")
    parser.add_argument("--heldout", type=Path, help="recording of held-out play (played afresh if left out)")
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("runs/bench"),
        help="of the benchmark (default: runs/bench)",
    )
    parser.add_argument(
        "--results",
        type=Path,
        help=f"results that presets are chosen from (default: {RESULTS} in the folder)",
    )
    parser.add_argument("--output", type=Path, help="where to write (default: into the model's folder)")


def _calibrate(arguments: argparse.Namespace) -> None:
    from worldcache.bench.calibrate import candidates, choose_presets
    from worldcache.bench.calibrated import PolicyMaker
    from worldcache.bench.settings import SETTINGS
    from worldcache.bench.store import Store
    from worldcache.bench.work import Material, Sizes
    from worldcache.bench.wrapper import BenchWorldModel
    from worldcache.models.calibration import FILE
    from worldcache.policies.registry import get_policy_class, policy_names

    console = make_console()
    folder = weights_of(arguments.model, arguments.path)
    results = arguments.results or arguments.folder / RESULTS
    if arguments.results and not results.exists():
        raise InvalidInput(f"{results} does not exist; run worldcache bench", param="results")
    model = worldcache.load_model(arguments.model, path=arguments.path)
    (subject,) = subjects(
        arguments.model,
        [arguments.path] if arguments.path else None,
        [arguments.heldout] if arguments.heldout else (),
        (),
    )
    with progress_bars(console) as tell:
        material = Material(
            subject,
            model.info,
            arguments.folder,
            Sizes(tuning_chunks=CHUNKS),
            lambda stage, done, total: tell(stage, "", done, total),
        )
        tell("calibrate", "uncached chunks", 0, 1)
        maker = PolicyMaker(
            BenchWorldModel(model),
            material.tuning(),
            SETTINGS["base"],
            num_steps=model.info.num_inference_steps,
            seed=1_000,
        )
        measured = {
            name: dict(maker.calibration(name))
            for name in policy_names()
            if get_policy_class(name).calibrated
        }
        tell("calibrate", "", 1, 1)
    calibration: dict[str, Any] = {"policies": measured}
    if results.exists():
        found = candidates(Store(results), model.info.id)
        calibration["presets"], calibration["auto"] = choose_presets(found)
    output = arguments.output or folder / FILE
    output.write_text(json.dumps(calibration, indent=2) + "\n")
    for name, preset in calibration.get("presets", {}).items():
        console.print(f"{name}: {preset['policy']} {json.dumps(preset['parameters'])}", highlight=False)
    if not results.exists():
        console.print("no results of the benchmark: presets are left as they are", highlight=False)
    console.print(f"wrote {output}", highlight=False, soft_wrap=True)
