"""Arrays of frames as ``.npz``, read in pieces."""

from __future__ import annotations

import io
import math
import re
import zipfile
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

PREFIX = 10
"""Bytes before an array's header: magic, version 1.0, and the header's length in the last two."""

HEADER = re.compile(rb"\{'descr': '([^']+)', 'fortran_order': False, 'shape': \(([\d, ]+)\), \}\s*")


class _Member(NamedTuple):
    """An open array: where its values begin, how many frames it has, of what shape and type."""

    file: IO[bytes]
    begin: int
    frames: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class FrameFile:
    """An ``.npz`` that this service wrote, of which only the frames that are asked for are held.

    For one thread at a time.
    """

    def __init__(self, data: bytes) -> None:
        self._archive = zipfile.ZipFile(io.BytesIO(data))
        self._members: dict[str, _Member] = {}

    @property
    def modalities(self) -> list[str]:
        return [name.removesuffix(".npy") for name in self._archive.namelist()]

    def all(self, modality: str) -> NDArray[Any]:
        """Every frame."""
        return self.read(modality, 0, self._open(modality).frames)

    def read(self, modality: str, start: int, stop: int) -> NDArray[Any]:
        """The frames from ``start`` to before ``stop``. Reading on is cheaper than reading back."""
        member = self._open(modality)
        size = member.dtype.itemsize * math.prod(member.shape)
        member.file.seek(member.begin + start * size)
        data = member.file.read((stop - start) * size)
        return np.frombuffer(data, member.dtype).reshape(stop - start, *member.shape)

    def _open(self, modality: str) -> _Member:
        if modality not in self._members:
            self._members[modality] = _read_header(self._archive.open(f"{modality}.npy"))
        return self._members[modality]


def _read_header(file: IO[bytes]) -> _Member:
    """What numpy wrote before an array's values.

    Numpy's own reader evaluates the header as Python, which fails in Python 3.11 if two threads do it at
    the same moment.
    """
    prefix = file.read(PREFIX)
    header = file.read(int.from_bytes(prefix[-2:], "little"))
    match = HEADER.fullmatch(header)
    assert prefix.startswith(b"\x93NUMPY\x01\x00") and match is not None, "written by this service"
    frames, *shape = (int(size) for size in match[2].split(b",") if size.strip())
    return _Member(file, PREFIX + len(header), frames, tuple(shape), np.dtype(match[1].decode()))
