"""What the Dockerfile says of the image, and a process that runs as its container would."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.deploy.tools import ROOT

CONFINE = """
mount $0 /tmp && mount -o remount,bind,ro / || exit
caps=-all,+dac_read_search
exec setpriv --reuid "$1" --regid "$2" --clear-groups --no-new-privs \
    --inh-caps "$caps" --ambient-caps "$caps" --bounding-set "$caps" -- "${@:3}"
"""
"""A read-only root with a /tmp to write in, and the image's user, who here may read what is root's."""

EMPTY, OURS = "-t tmpfs tmpfs", "--bind /tmp"
"""What is put at /tmp: nothing, or itself where this checkout or its Python is in it."""


@dataclass
class Image:
    """The last stage of a Dockerfile, and those that it is built on."""

    env: dict[str, str] = field(default_factory=dict)
    user: str = ""
    workdir: str = ""
    entrypoint: Sequence[str] = ()
    healthcheck: Sequence[str] = ()
    copied: list[str] = field(default_factory=list)


def instructions(path: Path) -> list[tuple[str, str]]:
    """Every instruction with its arguments, on one line each."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    pairs = [line.partition(" ") for line in joined.splitlines() if line.strip()]
    return [(name.upper(), re.sub(r"\s+", " ", rest).strip()) for name, _, rest in pairs]


def read_image(path: Path, **arguments: str) -> Image:
    """The image that a Dockerfile makes with these build arguments."""
    stages: dict[str, list[tuple[str, str]]] = {}
    bases: dict[str, str] = {}
    known: dict[str, str] = {}
    stage = ""
    for name, rest in instructions(path):
        if name == "ARG" and not stage:
            key, _, default = rest.partition("=")
            known[key] = arguments.get(key, default)
        elif name == "FROM":
            base, _, stage = re.sub(r"\$\{(\w+)\}", lambda found: known[found[1]], rest).partition(" AS ")
            bases[stage], stages[stage] = base, []
        else:
            stages[stage].append((name, rest))
    chain = [stage]
    while bases[chain[-1]] in stages:
        chain.append(bases[chain[-1]])
    image = Image()
    for name, rest in (instruction for part in reversed(chain) for instruction in stages[part]):
        _apply(image, name, rest)
    return image


def _apply(image: Image, name: str, rest: str) -> None:
    if name == "ENV":
        image.env |= dict(pair.split("=", 1) for pair in shlex.split(rest))
    elif name == "USER":
        image.user = rest
    elif name == "WORKDIR":
        image.workdir = rest
    elif name == "ENTRYPOINT":
        image.entrypoint = json.loads(rest)
    elif name == "HEALTHCHECK":
        image.healthcheck = json.loads(rest.partition("CMD ")[2])
    elif name == "COPY":
        image.copied.append(rest)


def can_confine() -> bool:
    """Whether this machine lets us make a process as confined as a container's."""
    command = confined(["true"], "10001:10001")
    return os.geteuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0


def confined(command: Sequence[str], user: str) -> list[str]:
    """The command as the container of an image would run it; works on this machine if ``can_confine``."""
    uid, _, gid = user.partition(":")
    inside = any(Path(path).is_relative_to("/tmp") for path in (ROOT, sys.executable))
    return ["unshare", "--mount", "bash", "-c", CONFINE, OURS if inside else EMPTY, uid, gid, *command]


def container_environment(image: Image, **changes: str) -> dict[str, str]:
    """The image's environment, with this machine's programs for the image's, and no HOME."""
    assert image.env["PATH"].endswith(":${PATH}")
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    ours = {name: value for name, value in os.environ.items() if name.startswith("OPENBLAS")}
    return {**ours, **image.env, "PATH": path, "PYTHONPATH": str(ROOT), **changes}


def container_command(image: Image, scripts: Mapping[str, str]) -> list[str]:
    """The entry point, by the module behind its script: the script may be of another checkout."""
    script, *arguments = image.entrypoint
    return [sys.executable, "-m", scripts[script].partition(":")[0], *arguments]
