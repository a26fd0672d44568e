"""The golden tensors of Voyager: ``$WORLDCACHE_GOLDEN/voyager``, or else ``tests/golden/voyager``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from safetensors import safe_open

OURS = Path(__file__).parents[2] / "golden" / "voyager"


def folder() -> Path:
    other = Path(os.environ.get("WORLDCACHE_GOLDEN") or OURS.parent) / "voyager"
    return other if other.is_dir() else OURS


def read(
    name: str, framework: str = "pt", *, path: Path | None = None
) -> tuple[dict[str, Any], dict[str, str]]:
    """The tensors and the metadata of a file."""
    with safe_open((path or folder()) / f"{name}.safetensors", framework) as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}
