"""``worldcache key``: a fresh API key, and what to write into the file of keys."""

from __future__ import annotations

import argparse
import json
import re
import sys
from typing import Any

from app.options import above_0, positive
from worldcache.errors import InvalidInput


def add_key(commands: Any) -> None:
    """Add the subcommand to the command line."""
    parser = commands.add_parser(
        "key",
        help="make an API key",
        description="Prints a fresh key, which is kept nowhere, and the table for the file that "
        "WORLDCACHE_API_KEYS_FILE names.",
    )
    parser.set_defaults(command=_key, extra="server")
    parser.add_argument("key_name", metavar="NAME", help="whose key it is; rollouts belong to this name")
    parser.add_argument("--rate", type=above_0, help="most requests a minute")
    parser.add_argument(
        "--burst", type=positive, help="requests that may come at once (default: those of a minute)"
    )
    parser.add_argument("--concurrency", type=positive, help="most rollouts at once")
    parser.add_argument(
        "--model", action="append", dest="models", help="model that it may use; may be repeated"
    )
    parser.add_argument("--operator", action="store_true", help="may load and unload models")


def _key(arguments: argparse.Namespace) -> None:
    from app.keys import NAME, digest_of, new_key

    if not re.fullmatch(NAME, arguments.key_name):
        message = f"{arguments.key_name!r} must be letters, digits, dots, dashes and underscores, at most 64"
        raise InvalidInput(message, param="name")
    key = new_key()
    table: dict[str, Any] = {"name": arguments.key_name, "sha256": digest_of(key.encode()).hex()}
    limits = {name: getattr(arguments, name) for name in ("rate", "burst", "concurrency", "models")}
    table |= {name: value for name, value in limits.items() if value is not None}
    if arguments.operator:
        table["operator"] = True
    lines = [f"{name} = {json.dumps(value)}" for name, value in table.items()]
    sys.stdout.write("\n".join([f"# key, shown once: {key}", "[[keys]]", *lines, ""]))
