"""The dashboards' panels and queries."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry

from app.metrics import Metrics
from tests.deploy.tools import DOCKER

DASHBOARDS = sorted((DOCKER / "grafana/dashboards").glob("*.json"))


def panels() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every panel that shows something, with a name for a test."""
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            if panel["type"] != "row":
                yield f"{path.stem}: {panel['title']}", panel


def queries() -> Iterator[tuple[str, str]]:
    """Every query with a name for a test, Grafana's variables filled in as a short look at everything."""
    filled = {"$__rate_interval": "15s", "$__range": "60s", "$model": ".*", "$policy": ".*"}
    for name, panel in panels():
        for target in panel["targets"]:
            text = target["expr"]
            for variable, value in filled.items():
                text = text.replace(variable, value)
            assert "$" not in text, f"{name} has an unknown variable"
            yield f"{name}, {target['refId']}", text


def metric_names() -> set[str]:
    """Every metric of the service."""
    registry = CollectorRegistry()
    Metrics(registry)
    return {family.name + ("_total" if family.type == "counter" else "") for family in registry.collect()}


def metrics_in(text: str) -> set[str]:
    """The metrics that a query names; a histogram's parts count as the histogram."""
    bare = re.sub(r'"[^"]*"', "", text)
    names = re.findall(r"\bworldcache_\w+", bare)
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}
