"""What the subcommands share: options, numbers above 0, the console and its progress bars."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def add_model_options(parser: argparse.ArgumentParser, *, many: bool = False) -> None:
    """Options that say which model to load, and where; with ``many``, several folders of weights."""
    parser.add_argument("--model", default="doom", help="name of a model (default: doom)")
    parser.add_argument(
        "--path",
        type=Path,
        action="append" if many else "store",
        help="folder of other weights in the model's layout" + ("; may be repeated" if many else ""),
    )
    parser.add_argument("--device", default="cpu", help="where torch puts the model (default: cpu)")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16")


def positive(text: str) -> int:
    """A command-line number above 0."""
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def above_0(text: str) -> float:
    """A command-line number above 0, with a fraction or without."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return value


def given(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The options that were given; those left out keep the defaults of what they are passed to."""
    return {name: value for name in names if (value := getattr(arguments, name)) is not None}


def make_console() -> Console:
    """Where a command writes what a person reads."""
    from rich.console import Console

    return Console()


@contextmanager
def progress_bars(console: Console) -> Iterator[Callable[[str, str, int, int], None]]:
    """Bars by stage: told of a stage, what it is at, its steps done and in all."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        stages: dict[str, TaskID] = {}

        def tell(stage: str, note: str, done: int, total: int) -> None:
            if stage not in stages:
                stages[stage] = progress.add_task(stage, total=total, note=note)
                if progress.disable:
                    console.print(stage)
            progress.update(stages[stage], completed=done, total=total, note=note)

        yield tell
