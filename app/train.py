"""``worldcache train``: from nothing to a model of a scenario."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from app.options import given, make_console, positive, progress_bars


def add_train(commands: Any) -> None:
    """Add the subcommand to the command line."""
    parser = commands.add_parser(
        "train", help="train a model of a ViZDoom scenario: collect, train, export, evaluate"
    )
    parser.set_defaults(command=_train, extra="train")
    parser.add_argument("--scenario", default="basic", help="ViZDoom scenario (default: basic)")
    parser.add_argument("--folder", type=Path, help="of data, checkpoint and model (default: runs/SCENARIO)")
    parser.add_argument("--model-id", help="name of the exported model")
    parser.add_argument("--frames", type=positive, help="frames to collect")
    parser.add_argument("--heldout-frames", type=positive, help="frames to collect for the evaluation")
    parser.add_argument("--steps", type=positive, help="optimizer steps")
    parser.add_argument("--batch-size", type=positive)
    parser.add_argument("--width", type=positive, help="of the transformer")
    parser.add_argument("--depth", type=positive, help="blocks of the transformer")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--compile", action="store_true", dest="compile_model", help="use torch.compile")
    parser.add_argument("--initial", type=Path, help="folder of an exported model to begin from")
    parser.add_argument("--notes", help="for the model card: what the settings do not tell")
    parser.add_argument("--device", help="where to train, as in cuda:0")
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="go on from the folder's checkpoint (the default), or start anew on its data",
    )


def _train(arguments: argparse.Namespace) -> None:
    from worldcache.training.command import TrainOptions, train
    from worldcache.training.train import CHECKPOINT, TrainConfig

    folder = arguments.folder or Path("runs") / arguments.scenario
    recipe = TrainConfig(**given(arguments, "steps", "batch_size", "seed"))
    sizes = (
        "model_id",
        "frames",
        "heldout_frames",
        "width",
        "depth",
        "initial",
        "compile_model",
        "device",
        "notes",
    )
    options = TrainOptions(
        scenario=arguments.scenario, folder=folder, train=recipe, **given(arguments, *sizes)
    )
    if not arguments.resume:
        (folder / CHECKPOINT).unlink(missing_ok=True)
    console = make_console()
    with progress_bars(console) as tell:
        model = train(options, lambda stage, done, total, note: tell(stage, note, done, total))
    console.print(f"wrote {model}; load it with --path {model}", highlight=False, soft_wrap=True)
