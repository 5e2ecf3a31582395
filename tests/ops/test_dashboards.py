"""Every panel asks something that a real Prometheus answers, about migrations that really happened."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from ops.grafana.dashboards.all import FOLDER, written
from tests.ops.watched_fleet import EVACUATION, Watched

#: What Grafana puts in place of its variables. Data of some seconds, scraped each second, stands for hours here.
VARIABLES = {
    "$__rate_interval": "10s",
    "$__range": "5m",
    "$host": ".*",
    "$source": "alpha",
    "$destination": "beta",
    "$evacuation": EVACUATION,
}


def queries() -> Iterator[tuple[str, str, str]]:
    for name, text in written().items():
        for panel in json.loads(text)["panels"]:
            for target in panel.get("targets", []):
                where = f"{name.removesuffix('.json')}: {panel['title']} {target['refId']}"
                yield where, target["expr"], target["legendFormat"]


def variables() -> list[tuple[str, str, str]]:
    """(dashboard, metric, label) of every variable."""
    found = []
    for name, text in written().items():
        for variable in json.loads(text)["templating"].get("list") or []:
            asked = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"])
            assert asked, variable["query"]
            found.append((name, *asked.groups()))
    return found


def filled(expression: str) -> str:
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    assert "$" not in expression, f"a variable of {expression} is not known to this test"
    return expression


def panels() -> list[Any]:
    every = [panel for text in written().values() for panel in json.loads(text)["panels"]]
    return [panel for panel in every if panel["type"] not in {"row", "text"}]


def test_the_files_are_what_the_code_says() -> None:
    there = {path.name: path.read_text() for path in FOLDER.glob("*.json")}
    assert there == written(), "run `make dashboards` and look at what changed"


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel["title"])
def test_a_panel_says_what_it_shows_and_in_which_unit(panel: dict[str, Any]) -> None:
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("where", "expression", "legend"), [pytest.param(*each, id=each[0]) for each in queries()])
def test_a_query_finds_what_happened(seen: Watched, where: str, expression: str, legend: str) -> None:
    found = seen.over(filled(expression))
    assert found, f"no data for {filled(expression)}"
    named = set(re.findall(r"{{(\w+)}}", legend))
    assert all(named <= series["metric"].keys() for series in found), f"{legend} names what no series has"
    if legend == "__auto":
        assert len(found) == 1, "several series, and nothing tells them apart"


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("where", "metric", "label"), variables())
def test_there_is_something_to_choose_from(seen: Watched, where: str, metric: str, label: str) -> None:
    assert all(series["metric"][label] for series in seen.over(metric))
    assert seen.over(metric)
