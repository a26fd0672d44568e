"""The dashboards are complete: units, descriptions, and every metric of the service on one of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.dashboards import DASHBOARDS, metric_names, metrics_in, panels, queries


@pytest.mark.parametrize("panel", [pytest.param(panel, id=name) for name, panel in panels()])
def test_every_panel_says_what_it_shows_and_in_which_unit(panel: dict[str, Any]) -> None:
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["description"].endswith(".") and panel["description"] != panel["title"]
    assert panel["targets"] and all(target["legendFormat"] for target in panel["targets"])
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_the_panels_lie_beside_each_other(path: Path) -> None:
    board = json.loads(path.read_text())
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken and max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)


def test_every_metric_is_on_a_dashboard_and_no_other() -> None:
    shown = set().union(*(metrics_in(text) for _, text in queries()))
    assert shown == metric_names()


def test_the_dashboards_have_their_own_addresses() -> None:
    boards = [json.loads(path.read_text()) for path in DASHBOARDS]
    assert [board["uid"] for board in boards] == ["worldcache-caching", "worldcache-service"]
    assert [board["title"] for board in boards] == ["WorldCache: caching", "WorldCache: service"]
