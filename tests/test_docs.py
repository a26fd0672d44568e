"""The documentation names everything that exists, with its default."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from app.metrics import Metrics
from app.settings import Settings
from worldcache.policies.registry import describe_policies

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


@pytest.mark.parametrize("name", list(Settings.model_fields))
def test_every_setting_is_documented(name: str) -> None:
    field = Settings.model_fields[name]
    assert field.description
    default = field.default if not isinstance(field.default, tuple) else ",".join(field.default)
    shown = f"`{default}`" if default != "" else "none"
    row = f"| `WORLDCACHE_{name.upper()}` | {shown} | {field.description} |"
    assert row in (DOCS / "settings.md").read_text()


def test_every_metric_is_documented_with_its_labels() -> None:
    registry = CollectorRegistry()
    Metrics(registry)
    text = (DOCS / "metrics.md").read_text()
    for collector in registry._names_to_collectors.values():
        name = collector._name + ("_total" if collector._type == "counter" else "")  # type: ignore[attr-defined]
        labels = ", ".join(f"`{label}`" for label in collector._labelnames)  # type: ignore[attr-defined]
        assert f"| `{name}` | {collector._type} | {labels} |" in text  # type: ignore[attr-defined]


@pytest.mark.parametrize("policy", describe_policies(), ids=lambda policy: policy["name"])
def test_every_policy_is_documented_with_its_defaults(policy: dict) -> None:
    text = (DOCS / "policies.md").read_text()
    section = text.partition(f"\n## `{policy['name']}`\n")[2].partition("\n## ")[0]
    assert section, "the policy has no section"
    for name, schema in policy["parameters"].get("properties", {}).items():
        row = re.search(rf"^\| `{name}` \| `?\"?([^|`\"]+)\"?`? \|", section, re.MULTILINE)
        assert row, name
        shown = row.group(1).strip()
        assert shown == str(schema["default"]) or float(shown) == float(schema["default"]), name


def test_links_in_the_readme_lead_somewhere() -> None:
    text = (ROOT / "README.md").read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / target).exists(), target
