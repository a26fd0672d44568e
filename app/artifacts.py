"""Where the bytes of artifacts are: in memory or in files; Redis has its own.

A key is ``ROLLOUT/NAME``. Which names a rollout has is the store's business.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol
from urllib.parse import quote, unquote

from anyio import to_thread

from worldcache.errors import WorldCacheError


class StorageFailed(WorldCacheError):
    """The bytes of an artifact cannot be kept."""

    code = "storage_failed"


class ArtifactStore(Protocol):
    """Keeps bytes under keys. Everything is asynchronous, for backends on a network."""

    async def put(self, key: str, data: bytes) -> None:
        """Keep bytes; a reader sees all of them or those before.

        Raises:
            StorageFailed: there is no room, or no way to write.
        """

    async def get(self, key: str) -> bytes | None:
        """The bytes kept under a key."""

    async def remove(self, keys: Sequence[str]) -> None:
        """Let go of some; those that are not there are none."""

    async def strays(self, seconds: float) -> list[str]:
        """Rollouts with bytes that do not go by themselves, and that were not written to for so long."""

    async def remove_rollout(self, rollout_id: str) -> None:
        """Let go of everything of a rollout."""


class MemoryArtifacts:
    """Gone with the process."""

    def __init__(self) -> None:
        self._data: dict[str, bytes] = {}

    async def put(self, key: str, data: bytes) -> None:
        self._data[key] = data

    async def get(self, key: str) -> bytes | None:
        return self._data.get(key)

    async def remove(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._data.pop(key, None)

    async def strays(self, seconds: float) -> list[str]:
        return []

    async def remove_rollout(self, rollout_id: str) -> None:
        await self.remove([key for key in self._data if key.startswith(f"{rollout_id}/")])


class FileArtifacts:
    """A folder for each rollout, a file for each artifact, which several servers may share.

    Args:
        folder: is made if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def put(self, key: str, data: bytes) -> None:
        await to_thread.run_sync(self._write, self._path(key), data)

    async def get(self, key: str) -> bytes | None:
        return await to_thread.run_sync(self._read, self._path(key))

    async def remove(self, keys: Sequence[str]) -> None:
        await to_thread.run_sync(self._unlink, [self._path(key) for key in keys])

    async def strays(self, seconds: float) -> list[str]:
        return await to_thread.run_sync(self._untouched_since, time.time() - seconds)

    async def remove_rollout(self, rollout_id: str) -> None:
        folder = self._folder / _file_name(rollout_id)
        await to_thread.run_sync(lambda: shutil.rmtree(folder, ignore_errors=True))

    def _path(self, key: str) -> Path:
        rollout_id, _, name = key.partition("/")
        return self._folder / _file_name(rollout_id) / _file_name(name)

    def _write(self, path: Path, data: bytes) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            number, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")
            try:
                with os.fdopen(number, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, path)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
        except OSError as error:
            message = f"the frames cannot be kept: {error.strerror}; try again once there is room for them"
            raise StorageFailed(message) from error

    def _read(self, path: Path) -> bytes | None:
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None

    def _unlink(self, paths: Sequence[Path]) -> None:
        for path in paths:
            path.unlink(missing_ok=True)
        for folder in {path.parent for path in paths}:
            with suppress(OSError):  # there is more in it
                folder.rmdir()

    def _untouched_since(self, moment: float) -> list[str]:
        if not self._folder.is_dir():
            return []
        folders = [path for path in self._folder.iterdir() if path.is_dir()]
        return [unquote(path.name) for path in folders if path.stat().st_mtime < moment]


async def clear_strays(artifacts: ArtifactStore, seconds: float) -> None:
    """Let go of what a server without Redis, which has ended since, has left behind."""
    for rollout_id in await artifacts.strays(seconds):
        await artifacts.remove_rollout(rollout_id)


def _file_name(text: str) -> str:
    """A name without a separator that is none of the folder's own."""
    name = quote(text, safe="")
    return name if name.strip(".") else name.replace(".", "%2E")
