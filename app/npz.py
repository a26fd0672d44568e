"""Numpy's file formats: ``.npz`` of frames, read in pieces, and the header of any ``.npy``."""

from __future__ import annotations

import io
import math
import re
import zipfile
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

MAGIC = b"\x93NUMPY"
LENGTH_BYTES = {b"\x01\x00": 2, b"\x02\x00": 4, b"\x03\x00": 4}
"""Bytes that hold the header's length, by version."""

MAX_HEADER = 4096
HEADER = re.compile(
    r"\{'descr': '([^']{2,16})', 'fortran_order': (False|True), 'shape': \(([\d, ]*)\),? ?\}\s*", re.ASCII
)


class NpyHeader(NamedTuple):
    """What numpy writes before an array's values: their type, their order, their shape, where they begin."""

    dtype: np.dtype[Any]
    fortran_order: bool
    shape: tuple[int, ...]
    begin: int


def read_npy_header(file: IO[bytes]) -> NpyHeader:
    """The header at the beginning of ``file``, of an array of plain numbers.

    Numpy's own reader evaluates the header as Python, which fails in Python 3.11 if two threads do it at
    the same moment.

    Raises:
        ValueError: there is no such header.
    """
    start = file.read(len(MAGIC) + 2)
    size = LENGTH_BYTES.get(start[len(MAGIC) :], 0)
    length = int.from_bytes(file.read(size), "little")
    if not start.startswith(MAGIC) or not size or length > MAX_HEADER:
        raise ValueError("this is no .npy file")
    match = HEADER.fullmatch(file.read(length).decode("latin-1"))
    if match is None:
        raise ValueError("the header is not one of an array of numbers")
    try:
        dtype = np.dtype(match[1])
    except TypeError as error:
        raise ValueError(str(error)) from error
    shape = tuple(int(part) for part in match[3].split(",") if part.strip())
    return NpyHeader(dtype, match[2] == "True", shape, len(start) + size + length)


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
            file = self._archive.open(f"{modality}.npy")
            header = read_npy_header(file)
            frames, *shape = header.shape
            self._members[modality] = _Member(file, header.begin, frames, tuple(shape), header.dtype)
        return self._members[modality]
