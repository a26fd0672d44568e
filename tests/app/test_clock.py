"""The wall clock may jump: ages, deadlines and order are measured with one that does not."""

from __future__ import annotations

import asyncio
import time
from collections import deque

import pytest

from app.requests import Terms
from app.schemas import OutputBody, PicturesBody
from app.session_store import InMemorySessionStore, Session
from app.store import InMemoryStore, RolloutRecord
from tests.app.conftest import rollout_body, serving
from tests.toy import ToyWorldModel
from worldcache.core import RolloutState
from worldcache.policies.registry import make_policy

HOUR = 3600.0


class Clocks:
    """A steady clock, and the wall's, which is set forward and back while it runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steady, self.wall = 50.0, 1_800_000_000.0
        monkeypatch.setattr(time, "time", lambda: self.wall)

    def __call__(self) -> float:
        return self.steady

    def passes(self, seconds: float) -> None:
        self.steady += seconds
        self.wall += seconds


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    return Clocks(monkeypatch)


def finished(number: int) -> RolloutRecord:
    record = RolloutRecord(f"ro_{number}", "a", "toy", "none", 0, 4, OutputBody.model_validate({}), {})
    record.status, record.finished_at = "succeeded", time.time()
    return record


@pytest.mark.parametrize("jump", [-HOUR, HOUR])
def test_rollouts_are_kept_for_their_time(clocks: Clocks, jump: float) -> None:
    async def run() -> None:
        store = InMemoryStore(max_rollouts=10, max_bytes=10**6, ttl_seconds=60, clock=clocks)
        await store.add(finished(0))
        await store.save(finished(0))
        clocks.passes(30)
        clocks.wall += jump
        await store.add(finished(1))
        assert [r.id for r in await store.list("a", limit=9, after=None, status=None)] == ["ro_1", "ro_0"]
        clocks.passes(31)
        assert await store.get("ro_0") is None
        assert await store.get("ro_1") is not None
        clocks.passes(30)
        assert await store.get("ro_1") is None

    asyncio.run(run())


@pytest.mark.parametrize("jump", [-HOUR, HOUR])
def test_sessions_expire_when_nobody_used_them(clocks: Clocks, jump: float) -> None:
    def session() -> Session:
        terms = Terms(make_policy("none"), 0, 4, 1.0)
        pictures = PicturesBody.model_validate({})
        start = RolloutState((), 0)
        return Session("a", "a", "toy", terms, None, 4, pictures, {}, start, deque(maxlen=4))

    async def run() -> None:
        store = InMemorySessionStore(
            max_sessions=10, max_per_client=10, ttl_seconds=60, retry_after=1, clock=clocks
        )
        first, second = session(), session()
        await store.add(first)
        clocks.passes(30)
        clocks.wall += jump
        await store.add(second)
        assert second.expires_at == clocks.wall + 60, "clients are told by the wall's clock"
        clocks.passes(31)
        assert await store.list("a", limit=9, after=None) == [second]
        assert first.closed
        clocks.passes(30)
        assert await store.list("a", limit=9, after=None) == []

    asyncio.run(run())


@pytest.mark.parametrize("jump", [-HOUR, HOUR])
def test_deadlines_and_order_outlive_a_jump(monkeypatch: pytest.MonkeyPatch, jump: float) -> None:
    real = time.time
    jumped: list[float] = [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + jumped[0])

    def set_clock(rows: object) -> None:
        jumped[0] = jump

    with serving(ToyWorldModel(before_evaluate=set_clock)) as client:
        jumped[0] = 0.0
        early = client.post("/v1/rollouts", json=rollout_body(deadline_ms=20_000)).json()
        assert early["status"] == "succeeded" and early["stats"]["deadline"]["met"] is True
        late = client.post("/v1/rollouts", json=rollout_body()).json()
        listed = [rollout["id"] for rollout in client.get("/v1/rollouts").json()["data"]]
        assert listed == [late["id"], early["id"]]
        assert client.post("/v1/rollouts", json=rollout_body(deadline_ms=1)).status_code == 504
