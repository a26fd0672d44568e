"""The overlays: rendered by kubectl, checked against Kubernetes's schemas and against each other."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.main import ENGINE_STOP_SECONDS
from app.settings import Settings
from tests.deploy.test_compose import AWAITED
from tests.deploy.tools import OVERLAYS, RULES, read_yaml, run_tool

KUBERNETES = "1.31"
OTHERS = {"ServiceMonitor", "PrometheusRule", "ScaledObject"}
"""Kinds that operators add to a cluster: Kubernetes's own schemas do not know them."""

Objects = dict[str, dict[str, Any]]


def render(overlay: str) -> Objects:
    """The objects of an overlay, by kind."""
    objects = list(yaml.safe_load_all(run_tool("kubectl", "kustomize", OVERLAYS / overlay)))
    by_kind = {found["kind"]: found for found in objects}
    assert len(by_kind) == len(objects)
    return by_kind


@pytest.fixture(scope="module", params=["cpu", "gpu"])
def overlay(request: pytest.FixtureRequest) -> Objects:
    return render(request.param)


@pytest.fixture(scope="module")
def gpu() -> Objects:
    return render("gpu")


def pod(objects: Objects) -> dict[str, Any]:
    spec: dict[str, Any] = objects["Deployment"]["spec"]["template"]["spec"]
    return spec


def service_container(objects: Objects) -> dict[str, Any]:
    (found,) = pod(objects)["containers"]
    return dict(found)


def validate(objects: Iterable[dict[str, Any]], folder: Path) -> None:
    path = folder / "objects.yaml"
    path.write_text(yaml.safe_dump_all(objects))
    said = run_tool("kubernetes-validate", "--strict", "--kubernetes-version", KUBERNETES, path)
    assert "WARN" not in said, said


def test_kubernetes_would_accept_the_objects(overlay: Objects, tmp_path: Path) -> None:
    checked = set(overlay) - OTHERS
    assert {"Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy", "ConfigMap"} <= checked
    validate([overlay[kind] for kind in checked], tmp_path)


def test_the_schema_would_find_a_mistake(gpu: Objects, tmp_path: Path) -> None:
    wrong = json.loads(json.dumps(gpu["Deployment"]))
    wrong["spec"]["template"]["spec"]["containers"][0]["livenessprobe"] = {}
    with pytest.raises(AssertionError, match="livenessprobe"):
        validate([wrong], tmp_path)


def test_the_pod_is_confined(overlay: Objects) -> None:
    spec, container = pod(overlay), service_container(overlay)
    assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] == 10001
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False, "the Service's address would be read as WORLDCACHE_PORT"
    writable = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
    assert writable == {"/tmp"}


def test_probes_drain_and_grace_fit_together(overlay: Objects) -> None:
    container = service_container(overlay)
    paths = {probe: container[probe]["httpGet"]["path"] for probe in ("livenessProbe", "readinessProbe")}
    assert paths == {"livenessProbe": "/livez", "readinessProbe": "/readyz"}
    assert container["startupProbe"]["httpGet"]["path"] == "/livez"
    pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain = float(overlay["ConfigMap"]["data"]["WORLDCACHE_DRAIN_SECONDS"])
    assert pod(overlay)["terminationGracePeriodSeconds"] > pause + drain + ENGINE_STOP_SECONDS


def test_the_settings_are_known_and_hold_no_secret(overlay: Objects) -> None:
    data = overlay["ConfigMap"]["data"]
    names = {name.removeprefix("WORLDCACHE_").lower() for name in data}
    assert names <= set(Settings.model_fields) | AWAITED
    assert not {"api_keys", "redis_url"} & names
    assert "Secret" not in overlay
    mounts = {mount["name"]: mount["mountPath"] for mount in service_container(overlay)["volumeMounts"]}
    assert Path(data["WORLDCACHE_API_KEYS_FILE"]).parent == Path(mounts["keys"])
    (keys,) = [volume for volume in pod(overlay)["volumes"] if volume["name"] == "keys"]
    assert keys["secret"]["secretName"] == "worldcache-api-keys"
    (settings,) = service_container(overlay)["envFrom"]
    assert settings["configMapRef"]["name"] == overlay["ConfigMap"]["metadata"]["name"]


def test_selectors_find_the_pods(overlay: Objects) -> None:
    labels = overlay["Deployment"]["spec"]["template"]["metadata"]["labels"].items()
    spec = {kind: overlay[kind]["spec"] for kind in overlay if "spec" in overlay[kind]}
    for selector in (
        spec["Deployment"]["selector"]["matchLabels"],
        spec["Service"]["selector"],
        spec["PodDisruptionBudget"]["selector"]["matchLabels"],
        spec["NetworkPolicy"]["podSelector"]["matchLabels"],
    ):
        assert selector and selector.items() <= labels
    ports = {port["name"]: port["containerPort"] for port in service_container(overlay)["ports"]}
    assert ports["metrics"] == int(overlay["ConfigMap"]["data"]["WORLDCACHE_METRICS_PORT"])
    assert {port["targetPort"] for port in spec["Service"]["ports"]} == set(ports)
    to_redis = spec["NetworkPolicy"]["egress"][1]["to"][0]["podSelector"]["matchLabels"]
    assert to_redis == {"app.kubernetes.io/name": "redis"}
    asked = {rule["ports"][0]["port"]: rule["from"] for rule in spec["NetworkPolicy"]["ingress"]}
    assert set(asked) == set(ports) and asked["http"] != asked["metrics"]


def test_a_gpu_a_pod_weights_and_redis(gpu: Objects) -> None:
    container = service_container(gpu)
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert container["image"] == "worldcache:cuda"
    assert gpu["Deployment"]["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
    (models,) = [volume for volume in pod(gpu)["volumes"] if volume["name"] == "models"]
    assert models["persistentVolumeClaim"] == {"claimName": "worldcache-models", "readOnly": True}
    (redis,) = container["env"]
    assert redis == {
        "name": "WORLDCACHE_REDIS_URL",
        "valueFrom": {"secretKeyRef": {"name": "worldcache-redis", "key": "url"}},
    }


def test_a_cpu_needs_nothing_else_in_the_cluster() -> None:
    objects = render("cpu")
    assert not OTHERS & set(objects)
    assert "nvidia.com/gpu" not in json.dumps(objects)
    assert service_container(objects)["image"] == "worldcache:cpu"


def test_prometheus_finds_the_service_and_gets_the_rules(gpu: Objects) -> None:
    monitor, service = gpu["ServiceMonitor"]["spec"], gpu["Service"]
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert {endpoint["port"] for endpoint in monitor["endpoints"]} == {"metrics"}
    assert service["metadata"]["labels"][monitor["jobLabel"]] == "worldcache", "what alerts call the job"
    assert gpu["PrometheusRule"]["spec"] == read_yaml(RULES)


def test_keda_scales_on_what_waits_and_runs(gpu: Objects) -> None:
    spec, deployment = gpu["ScaledObject"]["spec"], gpu["Deployment"]
    assert spec["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert "replicas" not in deployment["spec"]
    assert spec["minReplicaCount"] <= spec["maxReplicaCount"]
    (trigger,) = spec["triggers"]
    metrics = re.findall(r"worldcache_\w+", trigger["metadata"]["query"].replace('"worldcache"', ""))
    assert metrics == ["worldcache_queue_depth", "worldcache_active_rollouts"]
    assert f'namespace="{deployment["metadata"]["namespace"]}"' in trigger["metadata"]["query"]
    most = Settings.model_fields["max_active"].default
    assert 1 < int(trigger["metadata"]["threshold"]) < most, "a pod that is full must be more than one"
