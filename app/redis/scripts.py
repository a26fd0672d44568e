"""What must happen in Redis at once: the Lua scripts of ``lua/``, each sent behind ``common.lua``.

Who may write a rollout is decided there: its hash has a ``fence``, the token of the process that runs it. A
token is put there when a rollout is begun or taken over, and goes when it ends or somebody else ends it.
Whatever comes with another token is refused.

Every script gets the prefix as its first argument; the others stand at its head. Times are seconds since the
epoch, spans milliseconds.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files

FENCED, DONE, MISSING = 0, 1, 2
"""Answers of scripts that write: somebody else has the rollout; done; there is no such rollout."""

COMMON = "common"


@cache
def source_of(name: str) -> str:
    """A script as it is sent."""
    folder = files(__package__) / "lua"
    return "\n".join((folder / f"{part}.lua").read_text() for part in (COMMON, name))


@cache
def digest_of(name: str) -> str:
    """What Redis knows a script by."""
    return hashlib.sha1(source_of(name).encode()).hexdigest()
