"""A function that takes turns with its owner."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from worldcache.models.pipeline.turns import TurnThread


def add(ask: Callable[[str], int]) -> int:
    return ask("first") + ask("second")


def lives(name: str) -> bool:
    """Whether there is a thread of this name; other tests' may be ending meanwhile."""
    return any(thread.name == name for thread in threading.enumerate())


def test_questions_and_answers_take_turns() -> None:
    thread = TurnThread(add, "adder")
    assert thread.start() == "first"
    assert thread.answer(3) == "second"
    assert lives("adder")
    assert thread.answer(4) is None
    assert thread.result == 7
    assert not lives("adder")
    thread.close()


def test_only_one_of_the_two_runs() -> None:
    told: list[str] = []

    def tell(ask: Callable[[int], None]) -> None:
        for number in range(3):
            told.append(f"function {number}")
            ask(number)

    thread = TurnThread(tell, "teller")
    number = thread.start()
    while number is not None:
        told.append(f"owner {number}")
        number = thread.answer(None)
    assert told == [f"{who} {number}" for number in range(3) for who in ("function", "owner")]


def test_what_the_function_raises_reaches_the_owner() -> None:
    def fail(ask: Callable[[str], int]) -> None:
        ask("anything")
        raise LookupError("nothing there")

    thread = TurnThread(fail, "failing")
    thread.start()
    assert lives("failing")
    with pytest.raises(LookupError, match="nothing there"):
        thread.answer(0)
    assert not lives("failing")
    thread.close()


def test_closing_unwinds_the_function() -> None:
    unwound: list[str] = []

    def stubborn(ask: Callable[[str], int]) -> None:
        try:
            try:
                ask("first")
            except Exception:
                unwound.append("swallowed")
        finally:
            unwound.append("left")
            ask("one more")

    thread = TurnThread(stubborn, "stubborn")
    thread.start()
    assert lives("stubborn")
    thread.close()
    assert not lives("stubborn")
    assert unwound == ["left"]
    thread.close()


def test_a_thread_that_was_never_started_can_be_closed() -> None:
    TurnThread(add, "adder").close()
