"""A real Prometheus scrapes a real server under load; every panel's and alert's query is run there."""

from __future__ import annotations

import math
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.app.conftest import rollout_body, serving
from tests.browser.proxy import free_port
from tests.deploy.dashboards import metrics_in, queries
from tests.deploy.tools import DOCKER, RULES, alert_rules, find_tool, read_yaml
from tests.toy import ToyWorldModel
from worldcache.models.base import Row

SCRAPES = 6
"""How often the server has been scraped under load before anything is asked: rates need two values."""
SCRAPED = "min(count_over_time(worldcache_policy_replaced_total[1m]))"
PATIENCE = 40.0
SPOILT = 3
"""The action that makes a rollout fail."""

pytestmark = pytest.mark.server


def spoil(rows: Sequence[Row]) -> None:
    if any(not row.unconditional and row.condition[0] == SPOILT for row in rows):
        raise RuntimeError("spoilt")


def use(client: httpx.Client) -> None:
    """A little of everything that a dashboard shows."""
    for cache in ("none", {"policy": "worldcache"}, "fast"):
        assert client.post("/v1/rollouts", json=rollout_body(cache=cache)).is_success
    assert client.post("/v1/rollouts", json=rollout_body(deadline_ms=1)).status_code == 504
    assert client.post("/v1/rollouts", json=rollout_body(actions=[SPOILT] * 4)).status_code == 500
    assert client.get("/v1/rollouts/ro_none").status_code == 404
    session = client.post("/v1/sessions", json={"model": "toy", "observation": {"start": "centre"}}).json()
    step = {"actions": [1] * session["frames_per_step"], "step_id": 0}
    assert client.post(f"/v1/sessions/{session['id']}/step", json=step).is_success
    assert client.delete(f"/v1/sessions/{session['id']}").is_success


class Prometheus:
    """Asks a Prometheus that runs here."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def get(self, path: str, **parameters: str) -> Any:
        answer = self._client.get(f"/api/v1/{path}", params=parameters).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def values(self, query: str) -> list[float]:
        """What a query gives now, one number a series."""
        return [float(series["value"][1]) for series in self.get("query", query=query)["result"]]


def wait_for(done: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        assert process.poll() is None, "Prometheus ended"
        try:
            if done():
                return
        except httpx.TransportError:
            pass  # it does not listen yet
        time.sleep(0.1)
    raise TimeoutError("Prometheus is not as far as it should be")


def configure(folder: Path, target: str) -> Path:
    """The project's own configuration, in a hurry and with this target."""
    settings = read_yaml(DOCKER / "prometheus.yaml")
    settings["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    settings["rule_files"] = [str(RULES)]
    settings["scrape_configs"][0]["static_configs"] = [{"targets": [target]}]
    path = folder / "prometheus.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@contextmanager
def scraping(folder: Path, target: str) -> Iterator[tuple[Prometheus, subprocess.Popen[bytes]]]:
    """A Prometheus of the project's configuration that is ready."""
    port = free_port()
    command = [
        find_tool("prometheus"),
        f"--config.file={configure(folder, target)}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=warn",
    ]
    process = subprocess.Popen(command)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
            wait_for(lambda: client.get("/-/ready").is_success, process)
            yield Prometheus(client), process
    finally:
        process.terminate()
        process.wait(30)


@contextmanager
def load(server: httpx.Client) -> Iterator[Future[None]]:
    """Use the server again and again until the block ends; what goes wrong meanwhile fails it."""
    enough = threading.Event()

    def keep_using() -> None:
        while not enough.wait(0.2):
            use(server)

    with ThreadPoolExecutor(1) as pool:
        using = pool.submit(keep_using)
        try:
            yield using
        finally:
            enough.set()
        using.result(30)


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """It scrapes a server that is busy, and has done so for a while."""
    audited = {"audit_share": 1.0, "audit_floors": "toy=101", "audit_min_samples": 1, "audit_window": 1}
    folder = tmp_path_factory.mktemp("prometheus")
    with serving(ToyWorldModel(before_evaluate=spoil), **audited) as server:
        target = server.base_url.netloc.decode()
        with scraping(folder, target) as (asked, process), load(server) as using:

            def scraped() -> bool:
                assert not using.done(), using.exception()
                # What comes last is that a preset is replaced: an audit has ended then.
                return asked.values(SCRAPED) >= [SCRAPES]

            wait_for(scraped, process)
            yield asked


@pytest.mark.parametrize("query", [pytest.param(text, id=name) for name, text in queries()])
def test_every_query_of_a_dashboard_returns_data(prometheus: Prometheus, query: str) -> None:
    values = prometheus.values(query)
    assert any(math.isfinite(value) for value in values), f"{query} gives {values}"


def test_the_load_is_seen_as_it_was(prometheus: Prometheus) -> None:
    """Numbers that follow from what was sent, so that a query of nothing but zeros would be noticed."""
    shares = prometheus.get(
        "query",
        query='sum by (policy) (worldcache_denoise_steps_total{kind="cached"})'
        " / sum by (policy) (worldcache_denoise_steps_total)",
    )["result"]
    skipped = {series["metric"]["policy"]: float(series["value"][1]) for series in shares}
    assert skipped["none"] == 0 and 0 < skipped["worldcache"] < 1 and 0 < skipped["interval"] < 1
    failed, all_of_them = (
        prometheus.values(f"sum(worldcache_rollouts_total{{{labels}}})") for labels in ('status="failed"', "")
    )
    assert 0 < failed[0] < all_of_them[0]
    assert prometheus.values('worldcache_rejected_total{reason="deadline_unreachable"}')[0] > 0
    assert prometheus.values('sum(worldcache_audits_total{result="compared"})')[0] > 0
    assert (
        0 < prometheus.values("worldcache_device_memory_bytes / worldcache_device_memory_total_bytes")[0] < 1
    )


@pytest.mark.parametrize("rule", alert_rules(), ids=lambda rule: rule["alert"])
def test_every_alert_can_be_evaluated(prometheus: Prometheus, rule: dict[str, Any]) -> None:
    groups = prometheus.get("rules")["groups"]
    (found,) = [one for group in groups for one in group["rules"] if one["name"] == rule["alert"]]
    assert (found["health"], found.get("lastError", "")) == ("ok", "")
    names = set(prometheus.get("label/__name__/values"))
    for metric in metrics_in(rule["expr"]):
        assert {metric, f"{metric}_count"} & names, f"nothing is known of {metric}"


def test_what_is_wrong_is_found(prometheus: Prometheus) -> None:
    """Rollouts fail and a preset was replaced: these alerts wait or fire, those of an outage do not."""
    alerts = {alert["labels"]["alertname"] for alert in prometheus.get("alerts")["alerts"]}
    assert {"WorldCacheRolloutsFailing", "WorldCachePresetReplaced"} <= alerts
    assert not {"WorldCacheDown", "WorldCacheNotReady", "WorldCacheModelLoadFailed"} & alerts
