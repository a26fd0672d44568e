"""``worldcache drive``: sessions over a WebSocket, against a real server."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.options import above_0, given, make_console, positive, progress_bars

if TYPE_CHECKING:
    from rich.console import Console

    from app.drive.results import Findings
    from app.drive.run import Plan
    from app.loadtest.run import Progress
    from app.settings import Settings

SERVED = ("dtype",)
"""Settings of the server that are options of the command."""

PRESETS = "balanced,worldcache,none"
LONGEST_RATE_SECONDS = 30.0
"""Of a frame rate's measurement: a client that only watches is paused after a while."""


def add_drive(commands: Any) -> None:
    """Add the subcommand to the command line."""
    parser = commands.add_parser(
        "drive",
        help="measure sessions over a WebSocket",
        description="Measures action-to-frame latency, frame rates and memory of sessions over a WebSocket, "
        "against a server that it starts itself, or one that runs (--url).",
    )
    parser.set_defaults(command=_drive, extra="server,bench")
    parser.add_argument("--model", default="doom", help="name of a model (default: doom)")
    parser.add_argument("--device", help="where torch puts the model of the server that is started")
    parser.add_argument("--dtype", help="float32, bfloat16 or float16")
    parser.add_argument("--url", help="a server that runs, in place of one of its own")
    parser.add_argument("--pid", type=positive, help="of the process behind --url, to watch its memory")
    parser.add_argument("--preset", default="balanced", help="cache of the sessions (default: balanced)")
    parser.add_argument(
        "--presets",
        default=PRESETS,
        help=f"presets or policies whose frame rates are measured, divided by commas (default: {PRESETS})",
    )
    parser.add_argument("--steps", type=positive, help="denoise steps per chunk (default: the model's own)")
    parser.add_argument(
        "--seconds",
        type=above_0,
        default=300.0,
        help="half in lock-step, half running freely; the rest takes about half as long again (default: 300)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("runs/sessions.md"),
        help="the report, with .json beside it (default: runs/sessions.md)",
    )


def _drive(arguments: argparse.Namespace) -> None:
    console = make_console()
    settings = _settings(arguments)
    with progress_bars(console) as tell:
        findings = _measure(arguments, settings, _plan(arguments), tell)
    _report(findings, arguments.output, console)


def _plan(arguments: argparse.Namespace) -> Plan:
    from app.drive.run import Plan

    seconds = arguments.seconds
    return Plan(
        preset=arguments.preset,
        presets=tuple(filter(None, (part.strip() for part in arguments.presets.split(",")))),
        seconds=seconds,
        rate_seconds=min(seconds / 15, LONGEST_RATE_SECONDS),
        together_seconds=seconds / 5,
        compute_steps=max(5, min(30, round(seconds / 10))),
        steps=arguments.steps,
        memory_every=min(1.0, seconds / 40),
    )


def _settings(arguments: argparse.Namespace) -> Settings:
    """What the server is started with, or is believed to have been."""
    from app.loadtest.server import read_settings

    chosen = given(arguments, *SERVED) | {"models": (arguments.model,), "log_level": "warning"}
    if arguments.device:
        chosen["devices"] = (arguments.device,)
    return read_settings(chosen)


def _measure(arguments: argparse.Namespace, settings: Settings, plan: Plan, tell: Progress) -> Findings:
    from app.drive.run import run
    from app.loadtest.run import Target
    from app.loadtest.server import as_variables, start_server
    from worldcache.bench.machine import machine

    key = settings.api_keys[0].get_secret_value() if settings.api_keys else None
    places = (settings.max_active, settings.max_queue)
    about = {"machine": machine(), "dtype": settings.dtype}
    if arguments.url:
        target = Target(arguments.url, key, arguments.pid, *places)
        return asyncio.run(run(plan, target, arguments.model, about, tell))
    tell("server", "starting", 0, 1)
    with start_server(as_variables(settings, SERVED)) as server:
        tell("server", server.url, 1, 1)
        target = Target(server.url, key, server.pid, *places)
        return asyncio.run(run(plan, target, arguments.model, about, tell))


def _report(findings: Findings, output: Path, console: Console) -> None:
    """Write the report.

    Raises:
        WorldCacheError: something does not hold that must hold on any machine.
    """
    from app.drive.checks import check
    from app.drive.report import as_markdown
    from app.loadtest.checks import refuse_broken
    from app.loadtest.report import to_json

    checks = check(findings)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(as_markdown(findings, checks))
    output.with_suffix(".json").write_text(to_json(checks, findings.as_json()))
    console.print(f"wrote {output}, and .json beside it", highlight=False, soft_wrap=True)
    refuse_broken(checks)
