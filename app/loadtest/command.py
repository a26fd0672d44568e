"""``worldcache loadtest``: the service under load, over HTTP, against a real server."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import worldcache
from app.options import above_0, given, make_console, positive, progress_bars

if TYPE_CHECKING:
    from rich.console import Console

    from app.loadtest.backbone import BackboneMeter
    from app.loadtest.results import Findings
    from app.loadtest.run import Plan, Progress
    from app.settings import Settings

POLICIES = "none,worldcache,forecast:full_steps=7"
SHORT_POLICIES = "none,worldcache,forecast:full_steps=3"

CHOSEN = ("dtype", "max_batch", "max_active", "max_queue")
"""Settings of the server that are options of the command."""

SERVED = (*CHOSEN, "max_per_client")
"""Those that a server of its own is started with."""


def add_loadtest(commands: Any) -> None:
    """Add the subcommand to the command line."""
    parser = commands.add_parser(
        "loadtest",
        help="measure the service under load",
        description="Measures throughput, latency, batching, overload and cancellation over HTTP, against a "
        "server that it starts itself, or one that runs (--url).",
    )
    parser.set_defaults(command=_loadtest, extra="server,bench")
    parser.add_argument("--model", default="doom", help="name of a model (default: doom)")
    parser.add_argument("--device", help="where torch puts the model of the server that is started")
    parser.add_argument("--dtype", help="float32, bfloat16 or float16")
    parser.add_argument("--url", help="a server that runs, in place of one of its own")
    parser.add_argument("--pid", type=positive, help="of the process behind --url, to watch its memory")
    parser.add_argument("--max-batch", type=positive, help="setting of the server")
    parser.add_argument("--max-active", type=positive, help="setting of the server")
    parser.add_argument("--max-queue", type=positive, help="setting of the server")
    parser.add_argument(
        "--policies",
        help=f"divided by commas, parameters by colons; the first is compared with (default: {POLICIES})",
    )
    parser.add_argument("--frames", type=positive, help="of every rollout (default: 16)")
    parser.add_argument("--steps", type=positive, help="denoise steps per chunk (default: the model's own)")
    parser.add_argument("--concurrency", type=_counts, help="numbers of clients (default: 1,2,4,8,16)")
    parser.add_argument("--seconds", type=above_0, help="of each closed loop (default: 15)")
    parser.add_argument("--together", type=positive, help="rollouts at once for batching (default: 8)")
    parser.add_argument("--repeats", type=positive, help="of the measurement of batching (default: 3)")
    parser.add_argument(
        "--rate",
        type=above_0,
        dest="share",
        help="of the steady mix, as a share of the sustainable one (default: 0.7)",
    )
    parser.add_argument(
        "--steady", type=above_0, dest="steady_seconds", help="seconds of the steady mix (default: 60)"
    )
    parser.add_argument(
        "--overload",
        type=above_0,
        dest="overload_seconds",
        help="seconds at twice the sustainable rate (default: 900)",
    )
    parser.add_argument("--cancellations", type=positive, help="rollouts to cancel (default: 1000)")
    parser.add_argument("--calls", type=positive, help="backbone calls of each size (default: 15)")
    parser.add_argument("--short", action="store_true", help="a few seconds: whether all is correct")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("runs/load.md"),
        help="the report, with .json and .png beside it (default: runs/load.md)",
    )


def _loadtest(arguments: argparse.Namespace) -> None:
    console = make_console()
    settings = _settings(arguments)
    plan = _plan(arguments)
    with progress_bars(console) as tell:
        findings = _measure(arguments, settings, plan, tell)
    _report(findings, arguments.output, console)


def _plan(arguments: argparse.Namespace) -> Plan:
    """The plan with what was given put in."""
    from app.loadtest.run import Plan
    from app.loadtest.work import parse_policies

    text = arguments.policies or (SHORT_POLICIES if arguments.short else POLICIES)
    short: dict[str, Any] = {
        "frames": 4,
        "steps": 6,
        "concurrency": (1, 4),
        "seconds": 0.3,
        "together": 4,
        "repeats": 1,
        "steady_seconds": 0.7,
        "overload_seconds": 1.5,
        "cancellations": 12,
        "memory_every": 0.2,
        "sizes": (1, 2, 3, 4),
        "calls": 2,
    }
    numbers = given(
        arguments,
        "frames", "steps", "concurrency", "seconds", "together", "repeats", "share", "steady_seconds",
        "overload_seconds", "cancellations", "calls",
    )  # fmt: skip
    return Plan(parse_policies(text), **((short if arguments.short else {}) | numbers))


def _settings(arguments: argparse.Namespace) -> Settings:
    """What the server is started with, or is believed to have been."""
    from app.loadtest.server import read_settings

    short = {"max_active": 4, "max_queue": 4} if arguments.short and not arguments.url else {}
    chosen = short | given(arguments, *CHOSEN) | {"models": (arguments.model,), "log_level": "warning"}
    if arguments.device:
        chosen["devices"] = (arguments.device,)
    settings = read_settings(chosen)
    if arguments.url:
        return settings
    places = settings.max_active + settings.max_queue  # all of them for the one client that there is
    return settings.model_copy(update={"max_per_client": max(places, settings.max_per_client)})


def _measure(arguments: argparse.Namespace, settings: Settings, plan: Plan, tell: Progress) -> Findings:
    from app.loadtest.run import Target, run
    from app.loadtest.server import as_variables, start_server
    from worldcache.bench.machine import machine

    key = settings.api_keys[0].get_secret_value() if settings.api_keys else None
    queue = min(settings.max_queue, max(0, settings.max_per_client - settings.max_active))
    places = (settings.max_active, queue)
    about = {"machine": machine(), "max_batch": settings.max_batch, "dtype": settings.dtype}
    if arguments.url:
        target = Target(arguments.url, key, arguments.pid, *places)
        return asyncio.run(run(plan, target, arguments.model, None, about, tell))
    meter = _meter(arguments, settings)
    tell("server", "starting", 0, 1)
    with start_server(as_variables(settings, SERVED)) as server:
        tell("server", server.url, 1, 1)
        target = Target(server.url, key, server.pid, *places)
        return asyncio.run(run(plan, target, arguments.model, meter, about, tell))


def _meter(arguments: argparse.Namespace, settings: Settings) -> BackboneMeter:
    """Of a model like the server's, in this process."""
    from app.loadtest.backbone import BackboneMeter

    model = worldcache.load_model(arguments.model, device=settings.devices[0], dtype=settings.dtype)
    model.warm()
    return BackboneMeter(model)


def _report(findings: Findings, output: Path, console: Console) -> None:
    """Write the report.

    Raises:
        WorldCacheError: something does not hold that must hold on any machine.
    """
    from app.loadtest.checks import check, refuse_broken
    from app.loadtest.plot import plot_points
    from app.loadtest.report import as_markdown, to_json

    checks = check(findings)
    output.parent.mkdir(parents=True, exist_ok=True)
    picture = output.with_suffix(".png")
    plot_points(findings.points, picture)
    output.write_text(as_markdown(findings, checks, picture.name))
    output.with_suffix(".json").write_text(to_json(checks, findings.as_json()))
    console.print(f"wrote {output}, and .json and .png beside it", highlight=False, soft_wrap=True)
    refuse_broken(checks)


def _counts(text: str) -> tuple[int, ...]:
    """``"1,2,4"`` as numbers above 0, in order and each once."""
    return tuple(sorted({positive(part.strip()) for part in text.split(",")}))
