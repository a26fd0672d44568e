"""A chunk is decoded once, whoever needs it."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from worldcache.core import Frames
from worldcache.decoded import Decoded


class Decoder:
    """Counts its calls; ``fails`` of them raise. Waits for ``go`` in each."""

    def __init__(self, fails: int = 0) -> None:
        self.calls, self.fails = 0, fails
        self.begun, self.go = threading.Event(), threading.Event()
        self.go.set()

    def __call__(self) -> Frames:
        self.calls += 1
        self.begun.set()
        self.go.wait()
        if self.calls <= self.fails:
            raise RuntimeError("out of memory")
        return {"rgb": np.arange(5), "depth": np.arange(5) + 10}


def test_nothing_is_decoded_until_somebody_asks() -> None:
    decode = Decoder()
    Decoded(decode)
    assert decode.calls == 0


@pytest.mark.parametrize("first", ["take", "last"])
def test_frames_and_the_last_one_come_from_one_call(first: str) -> None:
    decode = Decoder()
    decoded = Decoded(decode)
    if first == "take":
        assert decoded.take()["rgb"].tolist() == [0, 1, 2, 3, 4]
    for _ in range(2):
        assert {name: frames.tolist() for name, frames in decoded.last().items()} == {
            "rgb": [4],
            "depth": [14],
        }
    if first == "last":
        assert decoded.take()["depth"].tolist() == [10, 11, 12, 13, 14]
    assert decode.calls == 1


def test_one_thread_decodes_and_the_other_waits() -> None:
    decode = Decoder()
    decode.go.clear()
    decoded = Decoded(decode)
    with ThreadPoolExecutor(2) as pool:
        taken = pool.submit(decoded.take)
        assert decode.begun.wait(10)
        last = pool.submit(decoded.last)
        decode.go.set()
        assert len(taken.result(10)["rgb"]) == 5 and last.result(10)["rgb"].tolist() == [4]
    assert decode.calls == 1


def test_only_the_last_frame_is_kept() -> None:
    class Array(np.ndarray):  # plain ones take no weak references
        pass

    made: list[weakref.ref[Array]] = []

    def decode() -> Frames:
        frames = np.arange(5).view(Array)
        made.append(weakref.ref(frames))
        return {"rgb": frames}

    decoded = Decoded(decode)
    assert made == []
    decoded.take()
    gc.collect()
    assert made[0]() is None
    assert decoded.last()["rgb"].tolist() == [4]


def test_a_failure_is_told_and_tried_again() -> None:
    decode = Decoder(fails=1)
    decoded = Decoded(decode)
    with pytest.raises(RuntimeError, match="out of memory"):
        decoded.take()
    assert decoded.last()["rgb"].tolist() == [4] and decode.calls == 2
