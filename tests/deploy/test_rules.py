"""The alerts: promtool's word, cases for each that fire and that do not, and a section of the runbook."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.deploy.dashboards import metric_names, metrics_in
from tests.deploy.tools import ROOT, RULES, alert_rules, read_yaml, run_tool

CASES = ROOT / "tests/deploy/rules.test.yaml"
OPERATIONS = ROOT / "docs/operations.md"

every_alert = pytest.mark.parametrize("rule", alert_rules(), ids=lambda rule: rule["alert"])


def test_promtool_accepts_the_rules() -> None:
    assert f"{len(alert_rules())} rules found" in run_tool("promtool", "check", "rules", RULES)


def test_the_alerts_fire_when_they_should_and_only_then() -> None:
    assert "SUCCESS" in run_tool("promtool", "test", "rules", CASES)


@every_alert
def test_there_is_a_case_that_fires_and_one_that_does_not(rule: dict[str, Any]) -> None:
    cases = [case for test in read_yaml(CASES)["tests"] for case in test["alert_rule_test"]]
    outcomes = {bool(case["exp_alerts"]) for case in cases if case["alertname"] == rule["alert"]}
    assert outcomes == {True, False}


@every_alert
def test_an_alert_says_what_is_wrong_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("critical", "warning")
    notes = rule["annotations"]
    assert set(notes) == {"summary", "description", "runbook"} and notes["description"].endswith(".")
    assert notes["runbook"] == f"docs/operations.md#{rule['alert'].lower()}"
    section = OPERATIONS.read_text().partition(f"\n### {rule['alert']}\n")[2]
    assert section.strip() and not section.lstrip().startswith("#"), "the runbook has nothing about it"


@every_alert
def test_an_alert_looks_at_what_there_is(rule: dict[str, Any]) -> None:
    assert metrics_in(rule["expr"]) <= metric_names()
    source = "".join(path.read_text() for path in (ROOT / "app").glob("*.py"))
    for reasons in re.findall(r'reason=~"([^"]+)"', rule["expr"]):
        for reason in reasons.split("|"):
            assert f'"{reason}"' in source, f"nothing is refused with {reason}"
