"""``worldcache killtest``: a short drill of a toy, and what must hold of it."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from app.killtest.fleet import fleet_running
from app.killtest.results import Findings, as_markdown, check
from app.killtest.run import Plan, run
from app.loadtest.checks import broken
from app.loadtest.measures import spread
from app.loadtest.work import PolicyChoice
from tests.app.redis.server import RedisServer

ROOT = Path(__file__).parents[2]

SERVE = """
import sys
from app.main import create_app
from app.serving import serve
from app.settings import Settings
from tests.toy import ToyWorldModel
settings = Settings(redis_url=sys.argv[1], lease_seconds=1.5, max_active=2)
app = create_app(settings, models_by_name={"toy": ToyWorldModel(delay=0.02)})
serve(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
"""

ABOUT = {
    "machine": "a machine",
    "model": "toy",
    "policy": "policy `none`",
    "clients": 3,
    "asked": 6.0,
    "every": 3.0,
    "lease": 1.5,
    "replicas": 2,
    "frames": 12,
    "steps": 20,
}


def findings() -> Findings:
    """A drill in which all went well."""
    return Findings(
        about=ABOUT,
        seconds=10.0,
        kills=[3.0, 6.0],
        accepted=9,
        succeeded=9,
        failures=[],
        unended=0,
        twice=0,
        unknown=0,
        missing=0,
        changed=0,
        damaged=0,
        compared=[100.0, 80.0],
        taken_over=2,
        takeovers=3,
        resumed_chunks=4,
        chunks=27,
        reposted=1,
        broken=5,
        refused=0,
        unexpected=[],
        undisturbed=spread([1.0, 2.0]),
        disturbed=spread([5.0]),
    )


@pytest.mark.server
@pytest.mark.slow
def test_nothing_is_lost_when_servers_are_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    redis = RedisServer(tmp_path)
    redis.start()
    try:
        # a rollout takes 10 chunks of 20 steps of 20 ms, so those that begin first are hit
        plan = Plan(4.0, 3.0, 6, 40, 20, PolicyChoice("none", {"policy": "none"}))
        with fleet_running(lambda port: [sys.executable, "-c", SERVE, redis.url, str(port)]) as replicas:
            found = asyncio.run(run(plan, replicas, "toy", ABOUT, lambda *progress: None))
    finally:
        redis.kill()
    assert not broken(check(found))
    assert len(found.kills) == 1 and found.resumed_chunks > 0
    assert found.chunks == 10 * found.accepted and set(found.compared) == {100.0}
    text = as_markdown(found, check(found))
    assert "## Claims" in text and "## Problems" not in text


def test_a_good_drill_has_no_broken_promise() -> None:
    assert not broken(check(findings()))
    assert all(claim.holds for claim in check(findings()))


@pytest.mark.parametrize(
    ("changes", "number"),
    [
        ({"succeeded": 8, "failures": ["ro_1: parked"]}, 0),
        ({"succeeded": 8, "unended": 1}, 0),
        ({"accepted": 0, "succeeded": 0}, 0),
        ({"twice": 1}, 1),
        ({"unknown": 1}, 1),
        ({"missing": 1}, 1),
        ({"changed": 1}, 1),
        ({"damaged": 1}, 1),
        ({"kills": []}, 2),
        ({"taken_over": 0}, 2),
        ({"compared": [100.0, 0.0]}, 3),
        ({"unexpected": ["GET: 404"]}, 4),
    ],
)
def test_broken_promises_are_seen(changes: dict, number: int) -> None:
    checks = check(replace(findings(), **changes))
    assert broken(checks) == [checks[number]]
