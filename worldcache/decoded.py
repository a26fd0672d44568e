"""The frames of a finished chunk, which are decoded once, whoever needs them first."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Lock

from worldcache.core import Frames


class Decoded:
    """The frames of one finished chunk, decoded when somebody first asks for them.

    The engine hands them out, and a model may go on from the last one. Any thread may ask; one that comes
    while they are being decoded waits. What was handed out is not kept here, but for the last frame.

    Args:
        decode: makes the frames, at least one of each modality. It is let go of when it has succeeded.

    Attributes:
        seconds: that decoding took, once it has succeeded.
    """

    def __init__(self, decode: Callable[[], Frames]) -> None:
        self._decode: Callable[[], Frames] | None = decode
        self.seconds = 0.0
        self._lock = Lock()
        self._frames: Frames | None = None
        self._last: Frames = {}

    @property
    def ready(self) -> bool:
        """Whether nobody would wait for them any more."""
        return self._decode is None

    def take(self) -> Frames:
        """All frames; they can be taken once."""
        with self._lock:
            self._make()
            frames, self._frames = self._frames, None
        assert frames is not None, "the frames have been handed out before"
        return frames

    def last(self) -> Frames:
        """The last frame of each modality, ``[1, ...]``, as often as it is wanted; not to be changed."""
        with self._lock:
            self._make()
            return self._last

    def _make(self) -> None:
        if self._decode is None:
            return
        began = time.perf_counter()
        self._frames = self._decode()
        self.seconds = time.perf_counter() - began
        self._last = {name: frames[-1:].copy() for name, frames in self._frames.items()}
        self._decode = None
