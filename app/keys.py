"""The API keys of this server: what each may do, and the file that they are read from again and again.

Only digests are kept. Keys are random and long, so that a fast hash is right: there is nothing to guess that
a slow one would protect, and every request is hashed once.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import os
import re
import secrets
import tomllib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from anyio import to_thread
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    ValidationError,
)

from app.ratelimit import Rate
from worldcache.errors import InvalidInput

logger = logging.getLogger(__name__)

CHECK_SECONDS = 1.0
"""How often the file is looked at."""

MAX_FILE_BYTES = 2**20
NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"

RESERVED = ("anyone", "audit")
"""Names that stand for somebody else already."""

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F]{64}$")]


@dataclass(frozen=True)
class ApiKey:
    """What whoever has a key may do.

    Attributes:
        name: whose rollouts and sessions they are; not a secret.
        digests: SHA-256 of the key, and of the one before while it is being replaced.
        rate: of its requests; ``None`` for any.
        concurrency: rollouts at once; ``None`` for what anybody may.
        models: that it may use; ``None`` for all.
        operator: may load and unload models.
    """

    name: str
    digests: tuple[bytes, ...]
    rate: Rate | None = None
    concurrency: int | None = None
    models: frozenset[str] | None = None
    operator: bool = False


class _Entry(BaseModel):
    """A table ``[[keys]]`` of the file."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Annotated[str, StringConstraints(pattern=f"^{NAME}$")]
    sha256: Annotated[
        list[Digest], Field(min_length=1), BeforeValidator(lambda v: [v] if isinstance(v, str) else v)
    ]
    rate: float | None = Field(None, gt=0, allow_inf_nan=False)
    burst: int | None = Field(None, ge=1)
    concurrency: int | None = Field(None, ge=1)
    models: list[str] | None = None
    operator: bool = False

    def key(self) -> ApiKey:
        rate = None
        if self.rate is not None:
            rate = Rate(self.rate, self.burst or max(1, round(self.rate)))
        return ApiKey(
            self.name,
            tuple(bytes.fromhex(text) for text in self.sha256),
            rate,
            self.concurrency,
            None if self.models is None else frozenset(self.models),
            self.operator,
        )


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    keys: list[_Entry] = Field(default_factory=list)


def digest_of(key: bytes) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(key).digest()


def new_key() -> str:
    """A fresh key: 256 random bits."""
    return f"wc_{secrets.token_urlsafe(32)}"


def plain_key(key: SecretStr, *, operator: bool) -> ApiKey:
    """A key without a name: its digest stands for it, in a form that no key of a file can have."""
    digest = digest_of(key.get_secret_value().encode())
    return ApiKey(f"key:{digest.hex()[:32]}", (digest,), operator=operator)


def parse_keys(data: bytes) -> tuple[ApiKey, ...]:
    """The keys of a file.

    Raises:
        InvalidInput: says where it is wrong, and nothing of what stands there.
    """
    try:
        document = tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:  # of TOML or of UTF-8
        place = re.search(r"\(at [^)]*\)", str(error))
        raise InvalidInput(
            f"it is no TOML {place[0] if place else ''}".rstrip(), param="api_keys_file"
        ) from None
    try:
        keys = tuple(entry.key() for entry in _Document.model_validate(document).keys)
    except ValidationError as error:
        raise InvalidInput(_problem(error), param="api_keys_file") from None
    if any(key.name in RESERVED for key in keys):
        raise InvalidInput(f"no key may be called {' or '.join(RESERVED)}", param="api_keys_file")
    for of_what, counted in (
        ("name", Counter(key.name for key in keys)),
        ("sha256", Counter(digest for key in keys for digest in key.digests)),
    ):
        if any(count > 1 for count in counted.values()):
            raise InvalidInput(f"two of its keys have the same {of_what}", param="api_keys_file")
    return keys


def _problem(error: ValidationError) -> str:
    """The first problem, by its place; a name that we do not know may be anything, so it is not repeated."""
    problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
    known = {*_Entry.model_fields, *_Document.model_fields}
    place = ".".join(str(part) for part in problem["loc"] if isinstance(part, int) or part in known)
    if problem["type"] == "extra_forbidden":
        return f"{place or 'the file'} has a field that there is not".strip()
    return f"{place}: {problem['msg']}"


class KeyRing:
    """The keys that open this server, as they are now.

    Args:
        plain: keys of the configuration; operators if there is no file.
        path: of the file with further ones.

    Raises:
        InvalidInput: the file cannot be read.
    """

    def __init__(self, plain: Sequence[SecretStr] = (), path: Path | None = None) -> None:
        self._path = path
        self._plain = tuple(plain_key(key, operator=path is None) for key in plain)
        self._keys, self._seen = self._plain, None if path is None else _signature(path)
        if path is not None:
            try:
                self._keys += _read(path)
            except (OSError, InvalidInput) as error:
                raise InvalidInput(f"{path}: {_reason(error)}", param="api_keys_file") from None

    @property
    def needed(self) -> bool:
        """Whether a key is asked for at all; an empty file opens nothing."""
        return self._path is not None or bool(self._plain)

    def find(self, given: bytes) -> ApiKey | None:
        """The key that was presented. All digests are compared, each in constant time."""
        digest, found = digest_of(given), None
        for key in self._keys:
            for known in key.digests:
                if hmac.compare_digest(known, digest):
                    found = key
        return found

    def concurrency(self, name: str) -> int | None:
        """Rollouts at once of the key with this name, if it has a number of its own."""
        return next((key.concurrency for key in self._keys if key.name == name), None)

    def refresh(self) -> None:
        """Read the file if it has changed; if it is broken, the keys stay as they were. Blocks."""
        assert self._path is not None
        signature = _signature(self._path)
        if signature == self._seen:
            return
        self._seen = signature
        try:
            keys = _read(self._path)
        except (OSError, InvalidInput) as error:
            logger.error("the keys stay as they were, as their file cannot be used: %s", _reason(error))
            return
        self._keys = self._plain + keys
        logger.info("%d keys were read", len(keys))

    async def keep_fresh(self, shut_out: Callable[[str], None]) -> None:
        """Look at the file from time to time, until it is cancelled.

        Args:
            shut_out: told the names that have no key any more.
        """
        while self._path is not None:
            await asyncio.sleep(CHECK_SECONDS)
            before = {key.name for key in self._keys}
            await to_thread.run_sync(self.refresh)
            for name in before - {key.name for key in self._keys}:
                shut_out(name)


def _read(path: Path) -> tuple[ApiKey, ...]:
    with path.open("rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise InvalidInput(f"it is longer than {MAX_FILE_BYTES} bytes", param="api_keys_file")
    return parse_keys(data)


def _signature(path: Path) -> tuple[Any, ...] | None:
    """Changes when the file does; ``None`` while there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _reason(error: OSError | InvalidInput) -> str:
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else str(error)
