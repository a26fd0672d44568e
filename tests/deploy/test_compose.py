"""The compose file: its schema, and what holds between its parts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from app.main import ENGINE_STOP_SECONDS
from app.settings import Settings
from tests.deploy.image import read_image
from tests.deploy.tools import DOCKER, ROOT, read_yaml, run_tool

COMPOSE = DOCKER / "compose.yaml"
FILES = [COMPOSE, DOCKER / "compose.cuda.yaml"]
AWAITED: frozenset[str] = frozenset()
"""Settings that the service is about to get."""


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    """The services by name, what they share filled in."""
    found: dict[str, dict[str, Any]] = read_yaml(COMPOSE)["services"]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_files_follow_the_specification(path: Path) -> None:
    run_tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", path)


def test_the_schema_would_find_a_mistake(tmp_path: Path) -> None:
    wrong = tmp_path / "compose.yaml"
    wrong.write_text(COMPOSE.read_text().replace("read_only:", "readonly:"))
    with pytest.raises(AssertionError, match="readonly"):
        run_tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", wrong)


def test_everything_is_confined_and_only_loopback_is_published(services: dict[str, dict[str, Any]]) -> None:
    assert set(services) == {"worldcache", "redis", "prometheus", "grafana"}
    for name, service in services.items():
        assert service["read_only"] and service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert "build" in service or re.search(r":v?\d+\.\d+", service["image"]), f"{name} floats"
    assert "ports" not in services["redis"] and services["redis"]["networks"] == ["store"]
    assert read_yaml(COMPOSE)["networks"]["store"]["internal"]


def test_what_is_mounted_exists(services: dict[str, dict[str, Any]]) -> None:
    volumes = set(read_yaml(COMPOSE)["volumes"])
    for name, service in services.items():
        for volume in service.get("volumes", []):
            source = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", volume).partition(":")[0]
            assert source in volumes or (DOCKER / source).exists(), f"{name} mounts {source}"


def test_the_service_gets_settings_that_there_are(services: dict[str, dict[str, Any]]) -> None:
    environment = services["worldcache"]["environment"]
    names = {name.removeprefix("WORLDCACHE_").lower() for name in environment}
    assert names <= set(Settings.model_fields) | AWAITED
    assert environment["WORLDCACHE_API_KEYS_FILE"] == "/run/secrets/api_keys"
    assert services["worldcache"]["secrets"] == ["api_keys"]
    image = read_image(ROOT / "Dockerfile", VARIANT="cpu")
    assert any(port.endswith(f":{image.env['WORLDCACHE_PORT']}") for port in services["worldcache"]["ports"])
    drain = float(environment["WORLDCACHE_DRAIN_SECONDS"])
    grace = float(services["worldcache"]["stop_grace_period"].removesuffix("s"))
    assert grace > drain + ENGINE_STOP_SECONDS


def test_the_keys_are_in_no_commit() -> None:
    source = read_yaml(COMPOSE)["secrets"]["api_keys"]["file"]
    assert f"/docker/{source.removeprefix('./')}" in (ROOT / ".gitignore").read_text().splitlines()


def test_prometheus_scrapes_the_port_of_the_metrics(services: dict[str, dict[str, Any]]) -> None:
    (job,) = read_yaml(DOCKER / "prometheus.yaml")["scrape_configs"]
    port = services["worldcache"]["environment"]["WORLDCACHE_METRICS_PORT"]
    assert job["static_configs"] == [{"targets": [f"worldcache:{port}"]}]
    run_tool("promtool", "check", "config", DOCKER / "prometheus.yaml")


def test_grafana_is_given_its_source_and_dashboards(services: dict[str, dict[str, Any]]) -> None:
    provisioning = DOCKER / "grafana/provisioning"
    (source,) = read_yaml(provisioning / "datasources/prometheus.yaml")["datasources"]
    assert (
        source["type"] == "prometheus" and source["url"] == "http://prometheus:9090" and source["isDefault"]
    )
    (provider,) = read_yaml(provisioning / "dashboards/worldcache.yaml")["providers"]
    grafana = services["grafana"]
    folder = provider["options"]["path"]
    assert f"./grafana/dashboards:{folder}:ro" in grafana["volumes"]
    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (DOCKER / "grafana/dashboards" / home.removeprefix(f"{folder}/")).exists()
