"""Audits: what is run again, what is measured, what is replaced."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest
from pydantic import ValidationError

from app.audit import Choice, PresetGuard, is_sampled, next_safer, psnr_db
from app.settings import Settings
from tests.app.conftest import rollout_body, serving
from tests.app.test_rollouts import finish, metric
from tests.toy import ToyWorldModel
from worldcache.core import ModelInfo, Preset

PRESETS = {
    "none": Preset("none"),
    "quality": Preset("interval", {"interval": 2}),
    "balanced": Preset("interval", {"interval": 5}),
    "fast": Preset("interval", {"interval": 5}),
    "odd": Preset("interval", {"interval": 3}),
}
"""On the toy, 26 dB at interval 5 and 38 dB at interval 2, six frames of ten steps."""


def model(**presets: Preset) -> ToyWorldModel:
    toy = ToyWorldModel()
    toy.info = replace(toy.info, presets={**PRESETS, **presets})
    return toy


def info(**changes: Any) -> ModelInfo:
    return replace(model().info, **changes)


def audits(client: httpx.Client, result: str = "compared") -> float:
    return metric(client, "worldcache_audits_total", model="toy", result=result)


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that is bound to happen."""
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen")


def rollout(client: httpx.Client, **changes: Any) -> dict[str, Any]:
    response = client.post("/v1/rollouts", json=rollout_body(**changes))
    assert response.status_code == 200, response.text
    return response.json()


def audited(client: httpx.Client, **changes: Any) -> dict[str, Any]:
    """A rollout's statistics, once its audit is done."""
    before = audits(client)
    stats = rollout(client, **changes)["stats"]
    until(lambda: audits(client) > before)
    return stats


def test_psnr() -> None:
    frames = np.zeros((2, 4, 4, 3), np.uint8)
    assert psnr_db(frames, frames) == 100
    assert psnr_db(frames, frames + np.uint8(255)) == 0
    one_off = frames.copy()
    one_off[0, 0, 0, 0] = 5  # a squared error of 25 in one of 96 values
    assert psnr_db(one_off, frames) == pytest.approx(10 * math.log10(255**2 * 96 / 25))
    assert psnr_db(frames, one_off) == psnr_db(one_off, frames)


def test_the_sample_is_a_share_of_the_ids() -> None:
    ids = [f"ro_{number}" for number in range(2000)]
    assert not any(is_sampled(name, 0.0) for name in ids)
    assert all(is_sampled(name, 1.0) for name in ids)
    quarter = [name for name in ids if is_sampled(name, 0.25)]
    assert 400 < len(quarter) < 600
    assert all(is_sampled(name, 0.5) for name in quarter)


def test_the_next_safer_preset_differs() -> None:
    assert next_safer("fast", info()) == "quality"  # balanced is the same policy
    assert next_safer("quality", info()) == next_safer("odd", info()) == "none"
    assert next_safer("none", info()) is None
    assert next_safer("fast", info(presets={"fast": PRESETS["fast"]})) is None


def test_a_preset_is_replaced_once_its_mean_is_too_low() -> None:
    guard = PresetGuard({"toy": 40.0}, window=3, min_samples=2)
    assert guard.add(info(), "fast", 10.0) is None  # one audit says little
    assert guard.add(info(), "fast", 90.0) is None  # the mean is 50
    assert guard.add(info(), "fast", 28.0) is None  # 42.7
    assert guard.choose("fast", info()) == Choice("fast", "fast")
    assert guard.add(info(), "fast", 1.0) == "quality"  # 39.7: the first one has left the window
    assert guard.add(info(), "fast", 1.0) is None  # once is enough
    assert guard.choose("fast", info()) == Choice("quality", "quality", "fast")
    assert guard.choose("balanced", info()) == Choice("balanced", "balanced")


def test_replacements_are_chained_and_reach_auto_and_the_default() -> None:
    guard = PresetGuard({"toy": 40.0}, window=1, min_samples=1)
    facts = info(default_preset="fast", auto_preset="quality")
    assert guard.choose(None, facts) == guard.choose("fast", facts) == Choice("fast", "fast")
    assert guard.add(facts, "fast", 39.0) == "quality"
    assert guard.choose("auto", facts) == Choice("quality", "quality")
    assert guard.add(facts, "quality", 39.0) == "none"
    assert guard.choose(None, facts) == Choice("none", "none", "fast")
    assert guard.choose("auto", facts) == Choice("none", "none", "quality")
    spelt_out = {"policy": "interval", "interval": 5}
    assert guard.choose(spelt_out, facts) == Choice(spelt_out, None)
    assert guard.choose("nope", facts).cache == "nope"
    other = replace(facts, id="other")
    assert guard.choose("fast", other) == Choice("fast", "fast")


def test_without_a_floor_nothing_is_replaced() -> None:
    guard = PresetGuard({"other": 40.0}, window=1, min_samples=1)
    assert guard.add(info(), "fast", 1.0) is None
    assert guard.mean("toy", "fast") == 1.0


@pytest.mark.parametrize(
    "settings",
    [
        {"audit_floors": "doom"},
        {"audit_floors": "doom=high"},
        {"audit_floors": "doom=nan"},
        {"audit_floors": "=45"},
        {"audit_floors": "doom=45,doom=46"},
        {"audit_share": 1.5},
        {"audit_window": 3},
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(settings))):
        Settings(**settings)


def test_floors_by_model() -> None:
    assert Settings(audit_floors="doom=45, toy=30.5").audit_floor_by_model == {"doom": 45.0, "toy": 30.5}


def test_a_share_of_one_measures_every_cached_rollout_and_shows_none_of_its_own() -> None:
    with serving(model(), audit_share=1.0) as client:
        assert audited(client, cache="fast")["policy"] == "interval"
        labels = {"model": "toy", "policy": "interval"}
        assert metric(client, "worldcache_audit_psnr_db_count", **labels) == 1
        assert metric(client, "worldcache_audit_psnr_db_sum", **labels) == pytest.approx(26.13, abs=0.01)
        audited(client, cache={"policy": "interval", "interval": 2})
        assert metric(client, "worldcache_audit_psnr_db_count", **labels) == 2
        assert metric(client, "worldcache_audit_psnr_db_sum", **labels) == pytest.approx(63.75, abs=0.01)
        rollout(client, cache="none")
        time.sleep(0.2)
        assert (audits(client), audits(client, "failed"), audits(client, "skipped")) == (2, 0, 0)
        assert len(client.get("/v1/rollouts").json()["data"]) == 3
        assert metric(client, "worldcache_rollouts_total", policy="none") == 1
        assert metric(client, "worldcache_rollouts_total", policy="interval") == 2
        assert metric(client, "worldcache_frames_total", model="toy") == 18
        assert metric(client, "worldcache_active_rollouts", model="toy") == 0


def test_a_share_of_zero_measures_nothing() -> None:
    toy = model()
    with serving(toy, audit_floors="toy=100", audit_min_samples=1) as client:
        rollout(client, cache="fast")
        calls = len(toy.batches)
        time.sleep(0.2)
        assert len(toy.batches) == calls
        assert "worldcache_audit_psnr_db_count{" not in client.get("/metrics").text
        assert audits(client) == 0


def test_a_preset_below_the_floor_is_replaced(caplog: pytest.LogCaptureFixture) -> None:
    settings = {"audit_share": 1.0, "audit_floors": "toy=30", "audit_min_samples": 2}
    with caplog.at_level(logging.WARNING, "app.audit"), serving(model(), **settings) as client:
        for _ in range(2):
            stats = audited(client, cache="fast")
            assert (stats["policy"], stats["replaced_preset"], stats["skip_ratio"]) == ("interval", None, 0.8)
        stats = audited(client, cache="fast")
        assert (stats["policy"], stats["replaced_preset"], stats["skip_ratio"]) == ("interval", "fast", 0.5)
        spelt_out = audited(client, cache={"policy": "interval", "interval": 5})
        assert (spelt_out["replaced_preset"], spelt_out["skip_ratio"]) == (None, 0.8)
        assert metric(client, "worldcache_policy_replaced_total", model="toy", preset="fast") == 1
        assert metric(client, "worldcache_policy_replaced_total", model="toy", preset="quality") == 0
        assert rollout(client, cache="none")["stats"]["replaced_preset"] is None
        assert client.post("/v1/rollouts", json=rollout_body(cache="nope")).status_code == 422
    (record,) = [record for record in caplog.records if record.name == "app.audit"]
    assert record.getMessage() == (
        "preset fast of model toy is replaced by quality: its latest audits average 26.1 dB, below the floor"
    )


def test_a_floor_that_no_cache_reaches_ends_uncached() -> None:
    settings = {"audit_share": 1.0, "audit_floors": "toy=60", "audit_window": 1, "audit_min_samples": 1}
    with serving(model(), **settings) as client:
        audited(client)
        assert audited(client)["skip_ratio"] == 0.5
        stats = rollout(client)["stats"]
        assert (stats["policy"], stats["replaced_preset"], stats["skip_ratio"]) == ("none", "balanced", 0)
        video = client.post("/v1/videos", json={"num_frames": 1}).json()
        assert video["stats"]["replaced_preset"] == "balanced"


SLOW = {
    "cache": {"policy": "interval", "interval": 50},
    "num_inference_steps": 50,
    "actions": ["NOOP"] * 64,
}
"""16 backbone calls; its audit takes 800."""


def test_audits_are_bounded_and_do_not_hold_up_the_end() -> None:
    toy = ToyWorldModel(delay=0.08)
    with serving(toy, audit_share=1.0, drain_seconds=60) as client:
        began = [
            client.post("/v1/rollouts", json=rollout_body(**SLOW), headers={"Prefer": "respond-async"}).json()
            for _ in range(3)
        ]
        assert {finish(client, one["id"])["status"] for one in began} == {"succeeded"}
        until(lambda: audits(client, "skipped") == 1)
        assert audits(client) == 0
    calls = len(toy.batches)  # the server has stopped within half a minute: an audit takes twice as long
    time.sleep(0.3)
    assert len(toy.batches) == calls


def test_an_audit_that_fails_is_nobody_elses_failure(caplog: pytest.LogCaptureFixture) -> None:
    toy = model()
    with serving(toy, audit_share=1.0) as client:
        broken = iter([False] * 4)  # the rollout's own backbone calls: two chunks of two

        def refuse(rows: Any) -> None:
            if next(broken, True):
                raise RuntimeError("the device is gone")

        toy.before_evaluate = refuse
        answer = rollout(client, cache="fast")
        assert answer["status"] == "succeeded"
        until(lambda: audits(client, "failed") == 1)
        assert client.get(f"/v1/rollouts/{answer['id']}").json() == answer
        assert metric(client, "worldcache_rollouts_total", status="failed") == 0
    assert f"the audit of rollout {answer['id']} failed" in caplog.text
