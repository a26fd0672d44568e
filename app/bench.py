"""``worldcache bench``: every policy on the same work, in one run that can be resumed."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import worldcache
from app.options import add_model_options, make_console, progress_bars
from worldcache.errors import InvalidInput, UnknownName

if TYPE_CHECKING:
    from rich.console import Console

    from worldcache.bench.store import Store
    from worldcache.bench.work import Sizes, Subject

RESULTS = "results.jsonl"


def add_bench(commands: Any) -> None:
    """Add the subcommand to the command line."""
    parser = commands.add_parser(
        "bench",
        help="compare all policies by speed and quality on held-out play",
        description="Compares all policies on held-out play. Results are kept in the folder: a run that "
        "was stopped goes on, and parts that were run separately are reported together.",
    )
    parser.set_defaults(command=_bench, extra="bench")
    add_model_options(parser, many=True)
    parser.add_argument(
        "--heldout",
        type=Path,
        action="append",
        help="recording of play that the model was not trained on, as `worldcache train` leaves it; one "
        "for each --path (played afresh if left out)",
    )
    parser.add_argument(
        "--judge",
        type=Path,
        action="append",
        help="recording of other play, for the classifier of actions; one for each --path",
    )
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/bench"), help="of results (default: runs/bench)"
    )
    parser.add_argument("--settings", default="", help="which settings, as in base,shift7 (default: all)")
    parser.add_argument("--only", default="", help="regular expression that an entry's name must match")
    parser.add_argument("--quick", action="store_true", help="a small version that ends in about a minute")
    parser.add_argument("--overhead", action="store_true", help="measure the cost of control alone")
    parser.add_argument("--timing", action="store_true", help="measure the speed of single rollouts alone")
    parser.add_argument("--report", action="store_true", help="write the report of what is there")
    parser.add_argument("--steps", type=int, help="denoise steps per chunk (the model's own if left out)")
    parser.add_argument("--chunks", type=int, help="held-out chunks (default: 64)")
    parser.add_argument("--rollouts", type=int, help="rollouts (default: 16)")
    parser.add_argument("--repeats", type=int, help="single rollouts that are timed (default: 5)")
    parser.add_argument("--batch", type=int, default=16, help="rows of a backbone call (default: 16)")
    parser.add_argument(
        "--output",
        type=Path,
        help="write the report to this .md file, and .json and .png beside it (default: in the folder)",
    )


def subjects(name: str, paths: Sequence[Path] | None, heldout: Sequence[Path], judge: Sequence[Path]) -> Any:
    """What the command line names, one for each path.

    Raises:
        InvalidInput: there are recordings, but not one for each model.
    """
    from worldcache.bench.work import Subject

    folders: list[Path | None] = list(paths) if paths else [None]
    found = []
    for index, folder in enumerate(folders):
        recordings = []
        for option, files in (("heldout", heldout), ("judge", judge)):
            if files and len(files) != len(folders):
                raise InvalidInput(f"--{option} is given {len(files)} times for {len(folders)} models")
            recordings.append(files[index] if files else None)
        found.append(Subject(name, folder, scenario_of(weights_of(name, folder)), *recordings))
    return found


def weights_of(name: str, path: Path | None) -> Path:
    """The folder that a model's weights lie in.

    Raises:
        InvalidInput: they do not come with the package, and ``path`` is left out.
    """
    if path is not None:
        return path
    if name != "doom":
        raise InvalidInput(f"model {name!r} comes without weights; name their folder", param="path")
    from worldcache.models.doom.world import PRETRAINED

    return PRETRAINED


def scenario_of(folder: Path) -> str | None:
    """The scenario that a model's world names."""
    world = folder / "world.json"
    scenario = json.loads(world.read_text()).get("scenario") if world.exists() else None
    return None if scenario is None else str(scenario)


def digest_of(folder: Path) -> str:
    """Tells weights apart."""
    digest = hashlib.sha256()
    for path in sorted((folder / "transformer").glob("*")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _bench(arguments: argparse.Namespace) -> None:
    from worldcache.bench.settings import SETTINGS
    from worldcache.bench.store import Store

    names = [name for name in arguments.settings.split(",") if name] or list(SETTINGS)
    for name in names:
        if name not in SETTINGS:
            raise UnknownName("setting", name, SETTINGS, param="settings")
    if arguments.quick and not arguments.settings:
        names = ["base"]
    console = make_console()
    found = subjects(arguments.model, arguments.path, arguments.heldout or (), arguments.judge or ())
    store = Store(arguments.folder / RESULTS)
    if not arguments.report:
        with progress_bars(console) as tell:
            for subject in found:
                _measure(subject, names, arguments, store, tell)
    _write_report(arguments, store, console)


def _measure(
    subject: Subject,
    settings: Sequence[str],
    arguments: argparse.Namespace,
    store: Store,
    tell: Callable[[str, str, int, int], None],
) -> None:
    """Whatever was asked for, of one model."""
    from worldcache.bench.entries import make_entries, quick_entries
    from worldcache.bench.overhead import measure_overhead
    from worldcache.bench.run import Bench
    from worldcache.bench.settings import SETTINGS
    from worldcache.bench.timing import measure_timing
    from worldcache.bench.work import Material

    model = worldcache.load_model(
        arguments.model, path=subject.path, device=arguments.device, dtype=arguments.dtype
    )
    model.warm()
    name = model.info.id
    sizes = _sizes(arguments)
    material = Material(
        subject,
        model.info,
        arguments.folder,
        sizes,
        lambda stage, done, total: tell(f"{name}, {stage}", "", done, total),
    )
    everything = not (arguments.overhead or arguments.timing)
    entries = quick_entries() if arguments.quick else make_entries(presets=model.info.presets)
    repeats = arguments.repeats or (1 if arguments.quick else 5)
    digest = f"{digest_of(weights_of(arguments.model, subject.path))} {arguments.dtype}"
    for setting in settings:
        bench = Bench(
            model,
            digest,
            SETTINGS[setting],
            material,
            store,
            num_steps=arguments.steps or model.info.num_inference_steps,
            max_batch=arguments.batch,
        )

        def told(label: str, done: int, total: int, stage: str = f"{name}, {setting}") -> None:
            tell(stage, label, done, total)

        if everything:
            bench.run(entries, only=arguments.only, progress=told)
        if setting == "base" and (everything or arguments.timing):
            measure_timing(bench, entries, repeats=repeats, only=arguments.only, progress=told)
        if setting == "base" and (arguments.overhead or (everything and not arguments.quick)):
            measure_overhead(bench, entries, only=arguments.only, progress=told)


def _sizes(arguments: argparse.Namespace) -> Sizes:
    from worldcache.bench.work import Sizes

    sizes = (
        Sizes(
            chunks=8,
            rollouts=0,
            reference_chunks=0,
            tuning_chunks=2,
            heldout_frames=1_000,
            judge_steps=0,
        )
        if arguments.quick
        else Sizes()
    )
    given = {
        name: value for name in ("chunks", "rollouts") if (value := getattr(arguments, name)) is not None
    }
    return Sizes(**{**vars(sizes), **given})


def _write_report(arguments: argparse.Namespace, store: Store, console: Console) -> None:
    from worldcache.bench.machine import machine
    from worldcache.bench.plot import plot_fronts
    from worldcache.bench.report import as_json, as_markdown

    output = arguments.output or arguments.folder / "report.md"
    records = list(store)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(as_markdown(records, machine()))
    output.with_suffix(".json").write_text(json.dumps(as_json(records, machine()), indent=1) + "\n")
    plot_fronts(records, output.with_suffix(".png"))
    console.print(f"wrote {output}, and .json and .png beside it", highlight=False, soft_wrap=True)
