"""``worldcache killtest``: servers that die under load."""

from __future__ import annotations

import argparse
import asyncio
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from app.options import above_0, make_console, positive, progress_bars

LEASE_SECONDS = 5.0
MAX_ACTIVE = 4


def add_killtest(commands: Any) -> None:
    """Add the subcommand to the command line."""
    parser = commands.add_parser(
        "killtest",
        help="kill servers under load and see that nothing is lost",
        description="Starts two servers and a Redis, asks them for asynchronous rollouts, kills one of them "
        "from time to time, and checks that every accepted rollout has exactly one result.",
    )
    parser.set_defaults(command=_killtest, extra="server,bench")
    parser.add_argument("--model", default="doom", help="name of a model (default: doom)")
    parser.add_argument("--device", default="cpu", help="where torch puts the model (default: cpu)")
    parser.add_argument("--policy", default="worldcache", help="of the rollouts (default: worldcache)")
    parser.add_argument("--frames", type=positive, default=16, help="of a rollout (default: 16)")
    parser.add_argument("--steps", type=positive, help="denoise steps per chunk (default: the model's own)")
    parser.add_argument("--clients", type=positive, default=12, help="at the same time (default: 12)")
    parser.add_argument("--seconds", type=above_0, default=300.0, help="for which they ask (default: 300)")
    parser.add_argument("--every", type=above_0, default=20.0, help="seconds between two kills (default: 20)")
    parser.add_argument("--redis-url", help="a Redis that runs, in place of one of its own; it must be empty")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("runs/kill.md"),
        help="the report, with .json beside it (default: runs/kill.md)",
    )


def _killtest(arguments: argparse.Namespace) -> None:
    from app.killtest.fleet import fleet_running, redis_running, serve_command
    from app.killtest.results import as_markdown, check
    from app.killtest.run import Plan, run
    from app.loadtest.checks import refuse_broken
    from app.loadtest.report import to_json
    from app.loadtest.work import PolicyChoice
    from worldcache.bench.machine import machine

    console = make_console()
    plan = Plan(
        seconds=arguments.seconds,
        every=arguments.every,
        clients=arguments.clients,
        frames=arguments.frames,
        steps=arguments.steps,
        choice=PolicyChoice(arguments.policy, {"policy": arguments.policy}),
    )
    about = {
        "machine": machine(),
        "model": arguments.model,
        "policy": f"policy `{arguments.policy}`",
        "clients": plan.clients,
        "asked": plan.seconds,
        "every": plan.every,
        "lease": LEASE_SECONDS,
        "replicas": 2,
    }
    redis = nullcontext(arguments.redis_url) if arguments.redis_url else redis_running()
    with progress_bars(console) as tell, redis as url:
        settings = {
            "models": arguments.model,
            "devices": arguments.device,
            "redis_url": url,
            "lease_seconds": LEASE_SECONDS,
            "max_active": MAX_ACTIVE,
            "store_max_rollouts": 100_000,
            "log_level": "warning",
        }
        tell("servers", "starting", 0, 1)
        with fleet_running(serve_command(settings)) as replicas:
            tell("servers", "ready", 1, 1)
            findings = asyncio.run(run(plan, replicas, arguments.model, about, tell))
    checks = check(findings)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(as_markdown(findings, checks))
    arguments.output.with_suffix(".json").write_text(to_json(checks, findings.as_json()))
    console.print(f"wrote {arguments.output}, and .json beside it", highlight=False, soft_wrap=True)
    refuse_broken(checks)
