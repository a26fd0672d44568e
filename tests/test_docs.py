"""The documentation names everything that exists, with its default."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

import app.errors
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


def test_every_error_is_documented_and_no_other() -> None:
    text = (DOCS / "errors.md").read_text()
    rows = re.findall(r"^\| (`[^|]*) \|", text, re.MULTILINE)
    documented = [code for row in rows for code in re.findall(r"`(\w+)`", row)]
    assert len(documented) == len(set(documented))
    assert set(documented) == served_codes()


def served_codes() -> set[str]:
    """The codes that answers may have: what the service's modules and those of its models name."""
    found: set[str] = set()
    for path in (*ROOT.glob("app/**/*.py"), *ROOT.glob("worldcache/**/*.py"), *ROOT.glob("deploy/**/*.py")):
        if (
            path.relative_to(ROOT).parts[:2] in NOT_SERVED
            or path.relative_to(ROOT).as_posix() == "app/bench.py"
        ):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                found |= codes_of_call(node)
            elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
                names = {target.id for target in node.targets if isinstance(target, ast.Name)}
                found |= {node.value.value} if names & {"code"} else set()
    found |= {*app.errors._CODES.values(), "http_error", "not_found"}
    assert len(found) > 50
    return found


NOT_SERVED = {("worldcache", name) for name in ("bench", "training", "pipelines", "client")}
"""Packages whose errors are met in Python alone."""

PLACES = {"ApiError": 1, "Unavailable": 0, "error_response": 2, "_refuse": 1}
"""Where these take their code, counted from 0."""


def codes_of_call(call: ast.Call) -> set[str]:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    given = [word.value for word in call.keywords if word.arg == "code"]
    if name in PLACES and len(call.args) > PLACES[name]:
        given.append(call.args[PLACES[name]])
    found = {one.value for one in given if isinstance(one, ast.Constant)}
    if name == "UnknownName" and isinstance(call.args[0], ast.Constant):
        found |= {f"unknown_{call.args[0].value}"} - {"unknown_dtype"}  # a setting, told at the start
    return {code for code in found if isinstance(code, str) and re.fullmatch(r"[a-z]+(_[a-z]+)*", code)}
