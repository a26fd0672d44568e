"""Tasks that end although a cancellation was lost."""

from __future__ import annotations

import asyncio

import pytest

from app.redis import tasks
from app.redis.tasks import end_tasks


def test_a_task_that_lost_its_cancellation_is_cancelled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "PATIENCE_SECONDS", 0.05)
    cancelled = 0

    async def stubborn() -> None:
        nonlocal cancelled
        while cancelled < 3:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled += 1

    async def run() -> None:
        task = asyncio.create_task(stubborn())
        await asyncio.sleep(0)
        await asyncio.wait_for(end_tasks([task, asyncio.create_task(asyncio.sleep(60))]), 10)
        assert task.done()

    asyncio.run(run())
    assert cancelled == 3


def test_no_tasks_are_no_trouble() -> None:
    asyncio.run(end_tasks([]))
