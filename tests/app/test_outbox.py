"""What waits for a slow client, by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from app.action_line import ActionLine, SentAction
from app.outbox import MAX_TEXTS, Outbox, OutgoingFrame


def frame(step: object, preface: str | None = None) -> OutgoingFrame:
    return OutgoingFrame((), SentAction(0, 0.0), step, preface)


async def drained(outbox: Outbox, count: int) -> Sequence[str | OutgoingFrame]:
    return [await outbox.get() for _ in range(count)]


def test_the_oldest_frames_give_way_and_texts_never_do() -> None:
    async def run() -> None:
        lost: list[None] = []
        outbox = Outbox(2, lambda: lost.append(None))
        frames = [frame(step=0) for _ in range(5)]
        outbox.put("first")
        for number, one in enumerate(frames):
            outbox.put_frame(one)
            outbox.put(f"after {number}")
        assert await drained(outbox, 8) == [
            "first", "after 0", "after 1", "after 2", frames[3], "after 3", frames[4], "after 4"
        ]  # fmt: skip
        assert [one.dropped for one in frames[3:]] == [3, 0]
        assert len(lost) == 3

    asyncio.run(run())


def test_a_preface_goes_on_to_the_next_frame_of_its_step_and_ends_with_the_last() -> None:
    async def run() -> None:
        outbox = Outbox(2)
        one, two, three, four = frame(1, "step 1"), frame(1), frame(2, "step 2"), frame(2)
        for each in (one, two, three):
            outbox.put_frame(each)
        assert two.preface == "step 1"
        outbox.put_frame(four)
        assert await drained(outbox, 2) == [three, four]
        assert (three.preface, three.dropped, four.preface) == ("step 2", 2, None)

    asyncio.run(run())


def test_texts_that_pile_up_are_waited_for() -> None:
    async def run() -> None:
        outbox = Outbox(1)
        for _ in range(MAX_TEXTS):
            outbox.put("x")
        waiting = asyncio.create_task(outbox.room())
        await asyncio.sleep(0.01)
        assert not waiting.done()
        await outbox.get()
        await asyncio.wait_for(waiting, 5)

    asyncio.run(run())


def test_flushed_is_when_the_last_entry_has_been_sent() -> None:
    async def run() -> None:
        outbox = Outbox(1)
        outbox.put("x")
        waiting = asyncio.create_task(outbox.flushed())
        await outbox.get()
        await asyncio.sleep(0.01)
        assert not waiting.done()
        more = asyncio.create_task(outbox.get())
        await asyncio.wait_for(waiting, 5)
        more.cancel()

    asyncio.run(run())


def test_actions_that_were_put_back_come_first_and_once() -> None:
    line = ActionLine("free", 4)
    for seq in range(6):
        line.add(seq, [seq], 0.0, alone=seq == 5)
    batch = line.take()
    assert batch is not None and batch.values == (0, 1, 2, 3)
    line.put_back(batch)
    again = line.take()
    assert again is not None and again.values == (0, 1, 2, 3)
    later = line.take()
    assert later is not None and later.values == (4, 4, 4, 4)
    assert line.clear() == 1
    assert line.take() is None
