"""What the tests of this folder share: the tools they run, and the files they read."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
OVERLAYS = ROOT / "deploy/kustomize/overlays"
RULES = DOCKER / "rules.yaml"


def lacking(what: str) -> NoReturn:
    """Skip; fail in CI, where nothing may be lacking."""
    if os.environ.get("CI"):
        pytest.fail(f"needs {what}")
    pytest.skip(f"needs {what}")


def find_tool(name: str) -> str:
    """A program: of this environment, or else of the machine."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    return found or lacking(name)


def run_tool(name: str, *arguments: str | Path) -> str:
    """What a tool says on standard output; it must end well."""
    done = subprocess.run(
        [find_tool(name), *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def read_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def alert_rules() -> list[dict[str, Any]]:
    """Every alert of ``docker/rules.yaml``."""
    return [rule for group in read_yaml(RULES)["groups"] for rule in group["rules"]]
