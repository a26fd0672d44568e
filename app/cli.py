"""The ``worldcache`` command: serve, roll out, train, and list what there is.

What a command needs is imported when it runs: help is instant, and an install without the extras
says which one is missing.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import worldcache
from app.bench import add_bench
from app.calibrate import add_calibrate
from app.drive.command import add_drive
from app.files import ENCODERS, Encoder
from app.key_command import add_key
from app.killtest.command import add_killtest
from app.loadtest.command import add_loadtest
from app.options import add_model_options, given, make_console, positive
from app.train import add_train
from worldcache.errors import InvalidInput, ModelLoadError, WorldCacheError

if TYPE_CHECKING:
    from rich.text import Text

    from worldcache.core import ChunkFinished, ChunkStats, ModelInfo, RolloutStats

Command: TypeAlias = Callable[[argparse.Namespace], None]

USAGE_ERROR = 2
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code, 2 for whatever the caller can put right."""
    arguments = make_parser().parse_args(argv)
    command: Command = arguments.command
    try:
        command(arguments)
    except WorldCacheError as error:
        return _refuse(arguments.name, str(error))
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("", "app", "worldcache"):
            raise
        return _refuse(
            arguments.name,
            f"the package {error.name} is not installed; pip install 'worldcache[{arguments.extra}]'",
        )
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def make_parser() -> argparse.ArgumentParser:
    """The command line; every subcommand sets ``command``, the function that runs it."""
    parser = argparse.ArgumentParser(
        prog="worldcache", description="Cached rollouts of diffusion world models."
    )
    parser.add_argument("--version", action="version", version=f"worldcache {worldcache.__version__}")
    commands = parser.add_subparsers(dest="name", required=True, metavar="COMMAND")
    for add in (_add_serve, _add_rollout, _add_models, _add_policies, add_train, add_bench, add_calibrate):
        add(commands)
    add_loadtest(commands)
    add_drive(commands)
    add_killtest(commands)
    add_key(commands)
    return parser


def parse_actions(text: str) -> list[str | int]:
    """``"MOVE_LEFT*2,3"`` as ``["MOVE_LEFT", "MOVE_LEFT", 3]``: names or indices, with a count or without.

    Raises:
        InvalidInput: an entry has no action, or a count that is no positive number.
    """
    actions: list[str | int] = []
    for index, entry in enumerate(text.split(",")):
        name, star, count = (part.strip() for part in entry.partition("*"))
        if not name:
            raise InvalidInput(f"entry {index} of the actions names no action", param=f"actions.{index}")
        if star and not (count.isdecimal() and int(count)):
            raise InvalidInput(
                f"{count!r} in {entry.strip()!r} is no number above 0; repeat an action as in {name}*16",
                param=f"actions.{index}",
            )
        action = int(name) if name.isdecimal() else name
        actions += [action] * (int(count) if star else 1)
    return actions


def parse_parameters(pairs: Sequence[str]) -> dict[str, Any]:
    """``["max_skip=6"]`` as ``{"max_skip": 6}``: values are JSON, or else text.

    Raises:
        InvalidInput: an entry is not ``key=value``.
    """
    parameters: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise InvalidInput(f"--param takes key=value, not {pair!r}", param="cache")
        try:
            parameters[key] = json.loads(value)
        except json.JSONDecodeError:
            parameters[key] = value
    return parameters


def _add_rollout(commands: Any) -> None:
    parser = commands.add_parser("rollout", help="generate frames here, without a server")
    parser.set_defaults(command=_rollout, extra="server")
    add_model_options(parser)
    parser.add_argument("--start", help="one of the model's starts (its first one if left out)")
    parser.add_argument(
        "--actions", required=True, help='one per frame, as in "MOVE_LEFT*16,ATTACK" or "1,1,3"'
    )
    parser.add_argument("--seed", type=int, default=0, help="of all randomness (default: 0)")
    parser.add_argument(
        "--steps", type=positive, help="denoise steps per chunk (the model's own if left out)"
    )
    parser.add_argument("--guidance", type=float, help="guidance scale, 1 for none")
    policy = parser.add_mutually_exclusive_group()
    policy.add_argument("--policy", help="cache policy, with its --param")
    policy.add_argument("--preset", help="one of the model's cache presets")
    parser.add_argument(
        "--param",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="parameter of the policy; may be repeated",
    )
    parser.add_argument(
        "--output",
        type=Path,
        help=f"where the frames go: {', '.join('*' + ending for ending in ENCODERS)} (png: a contact sheet)",
    )


def _rollout(arguments: argparse.Namespace) -> None:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    encode = _choose_encoder(arguments.output)
    actions = parse_actions(arguments.actions)
    parameters = parse_parameters(arguments.param)
    if parameters and not arguments.policy:
        raise InvalidInput("--param needs --policy", param="cache")
    model = worldcache.load_model(
        arguments.model, path=arguments.path, device=arguments.device, dtype=arguments.dtype
    )
    if arguments.preset:
        model.info.preset(arguments.preset)
    console = make_console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("frames", total=len(actions))
        marks = [time.perf_counter()]

        def tell(chunk: ChunkFinished) -> None:
            marks.append(time.perf_counter())
            progress.console.print(describe_chunk(chunk.stats, marks[-1] - marks[-2]), soft_wrap=True)
            progress.update(task, completed=chunk.first_frame + len(next(iter(chunk.frames.values()))))

        result = worldcache.rollout(
            model,
            start=arguments.start,
            actions=actions,
            policy=arguments.preset or arguments.policy,
            seed=arguments.seed,
            num_inference_steps=arguments.steps,
            guidance_scale=arguments.guidance,
            on_chunk=tell,
            **parameters,
        )
    console.print(summarise(result.stats, len(actions)), highlight=False, soft_wrap=True)
    if encode is not None:
        arguments.output.write_bytes(encode(result.frames, model.info))
        console.print(f"wrote {arguments.output}", highlight=False, soft_wrap=True)


def describe_chunk(stats: ChunkStats, seconds: float) -> Text:
    """One line: the chunk's decisions, the share of its steps that were cached, and its time."""
    from rich.text import Text

    line = Text(f"chunk {stats.index:3d}  ")
    for letter in stats.decisions:
        line.append(letter, style="bold green" if letter == "F" else "dim")
    cached = 1 - stats.steps_full / len(stats.decisions)
    return line.append(f"  {cached:4.0%} cached  {seconds:.2f} s")


def summarise(stats: RolloutStats, frames: int) -> str:
    """The rollout in one line."""
    return (
        f"{frames} frames in {stats.latency_seconds:.2f} s "
        f"({frames / max(stats.latency_seconds, 1e-9):.1f} frames/s), policy {stats.policy}: "
        f"{stats.steps_full} of {stats.steps_total} steps computed, skip ratio {stats.skip_ratio:.3f}"
    )


def _choose_encoder(output: Path | None) -> Encoder | None:
    """The encoder for the output's ending, found before anything is computed."""
    if output is None:
        return None
    if output.suffix not in ENCODERS:
        raise InvalidInput(f"{output} must end in one of: {', '.join(ENCODERS)}", param="output")
    if not output.absolute().parent.is_dir():
        raise InvalidInput(f"the folder {output.parent} does not exist; create it first", param="output")
    return ENCODERS[output.suffix]


def _add_serve(commands: Any) -> None:
    parser = commands.add_parser(
        "serve",
        help="run the HTTP service",
        description="Runs the HTTP service. Options go before the environment's WORLDCACHE_* settings.",
    )
    parser.set_defaults(command=_serve, extra="server")
    parser.add_argument("--host", help="address to listen on")
    parser.add_argument("--port", type=int, help="port to listen on")
    parser.add_argument(
        "--model",
        action="append",
        dest="models",
        metavar="NAME[=FAMILY[:WEIGHTS]]",
        help="model to serve, or a folder of weights in a family's layout; may be repeated",
    )
    parser.add_argument(
        "--device", action="append", dest="devices", help="where torch may put models; may be repeated"
    )
    parser.add_argument("--dtype", help="float32, bfloat16 or float16")
    parser.add_argument(
        "--insecure",
        action="store_true",
        default=None,
        help="allow an address that others can reach without API keys",
    )


def _serve(arguments: argparse.Namespace) -> None:
    from pydantic import ValidationError

    from app.logs import configure_logging
    from app.main import create_app
    from app.serving import serve
    from app.settings import Settings, check_binding
    from worldcache.engine.allocator import keep_freed_memory

    try:
        settings = Settings(**given(arguments, "host", "port", "models", "devices", "dtype", "insecure"))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in problem["loc"])
        raise InvalidInput(f"setting {name}: {problem['msg']}", param=name) from None
    check_binding(settings)
    configure_logging(settings.log_level, settings.log_format)
    keep_freed_memory()
    serve(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,  # the middleware says more, and no queries
        server_header=False,
        timeout_graceful_shutdown=math.ceil(settings.drain_seconds),
    )


def _add_models(commands: Any) -> None:
    parser = commands.add_parser("models", help="list the models that can be loaded")
    parser.set_defaults(command=_models, extra="server")


def _models(arguments: argparse.Namespace) -> None:
    from rich.table import Table

    table = Table("model", "frames", "actions", "starts", "presets", title_justify="left")
    for name in worldcache.model_names():
        try:
            table.add_row(name, *_describe_model(worldcache.load_model(name).info))
        except ModelLoadError as error:
            table.add_row(name, f"cannot be loaded: {error}")
    make_console().print(table)


def _describe_model(info: ModelInfo) -> tuple[str, ...]:
    """The cells of a model's row after its name."""
    height, width = info.resolution
    modalities = ", ".join(modality.name for modality in info.modalities)
    space = info.action_space.describe()
    presets = (f"{name} (default)" if name == info.default_preset else name for name in info.presets)
    return (
        f"{width}x{height} {modalities}\n{info.fps:g} per second, {info.chunk_frames} a chunk\n"
        f"{info.num_inference_steps} denoise steps",
        "\n".join(space.get("names", [space["type"]])),
        "\n".join(info.starts),
        "\n".join(presets),
    )


def _add_policies(commands: Any) -> None:
    parser = commands.add_parser("policies", help="list the cache policies and their parameters")
    parser.set_defaults(command=_policies, extra="server")


def _policies(arguments: argparse.Namespace) -> None:
    from rich.table import Table

    from worldcache.policies.registry import describe_policies

    table = Table("policy", "plans ahead", "parameters", "what it does")
    for policy in describe_policies():
        parameters = policy["parameters"].get("properties", {})
        table.add_row(
            policy["name"],
            "yes" if policy["plans_ahead"] else "no",
            "\n".join(f"{name}={json.dumps(schema.get('default'))}" for name, schema in parameters.items()),
            policy["description"],
        )
    make_console().print(table)


def _refuse(command: str, message: str) -> int:
    sys.stderr.write(f"worldcache {command}: {message}\n")
    return USAGE_ERROR


if __name__ == "__main__":
    sys.exit(main())
