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


#: More lines than these nobody tells apart, and their legend takes the place of the panel.
MOST_SERIES = 12


def queries() -> Iterator[tuple[str, str, str, bool]]:
    """(where, expression, legend, whether the panel says something of its own when there is nothing)."""
    for name, text in written().items():
        for panel in json.loads(text)["panels"]:
            says = "noValue" in panel.get("fieldConfig", {}).get("defaults", {})
            for target in panel.get("targets", []):
                where = f"{name.removesuffix('.json')}: {panel['title']} {target['refId']}"
                yield where, target["expr"], target["legendFormat"], says


def variables() -> list[tuple[str, str, str]]:
    """(dashboard, metric, label) of every variable."""
    found = []
    for name, text in written().items():
        for variable in json.loads(text)["templating"].get("list") or []:
            asked = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"])
            assert asked, variable["query"]
            found.append((name, *asked.groups()))
    return found


def filled(expression: str) -> str:
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    assert "$" not in expression, f"a variable of {expression} is not known to this test"
    return expression


def panels() -> list[Any]:
    return [panel for page in pages().values() for panel in page if panel["type"] not in {"row", "text"}]


def figures() -> list[Any]:
    return [panel for panel in panels() if panel["type"] == "stat"]


def pages() -> dict[str, list[Any]]:
    return {name: json.loads(text)["panels"] for name, text in written().items()}


def legend_of(target: dict[str, Any], labels: dict[str, str]) -> str:
    """What Grafana calls a series of it."""
    return re.sub(r"{{(\w+)}}", lambda name: labels[name[1]], target["legendFormat"])


def test_the_files_are_what_the_code_says() -> None:
    there = {path.name: path.read_text() for path in FOLDER.glob("*.json")}
    assert there == written(), "run `make dashboards` and look at what changed"


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel["title"])
def test_a_panel_says_what_it_shows_and_in_which_unit(panel: dict[str, Any]) -> None:
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]


@pytest.mark.parametrize("panel", figures(), ids=lambda panel: panel["title"])
def test_a_figure_is_that_of_now(panel: dict[str, Any]) -> None:
    """The last value of the time shown would stand there, in green, long after who told it has died."""
    assert [(target["instant"], target["range"]) for target in panel["targets"]] == [(True, False)]
    assert panel["options"]["graphMode"] == "none"


@pytest.mark.parametrize("panel", figures(), ids=lambda panel: panel["title"])
def test_a_figure_that_nobody_tells_is_not_nought(panel: dict[str, Any]) -> None:
    """No worker is missing, says a 0 or a green word; without an exporter nobody knows that."""
    assert "vector(" not in panel["targets"][0]["expr"]
    of_null = panel["fieldConfig"]["defaults"]["mappings"][0]
    assert (of_null["type"], of_null["options"]["match"]) == ("special", "null+nan")
    assert of_null["options"]["result"]["text"]
    assert of_null["options"]["result"]["color"] in {"text", "orange"}


@pytest.mark.parametrize("panel", figures(), ids=lambda panel: panel["title"])
def test_a_figure_says_itself_which_colour_it_has(panel: dict[str, Any]) -> None:
    """Grafana's own thresholds make it red from 80 on: a hundred hosts that are up are no alarm."""
    assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"]


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel["title"])
def test_colours_of_ends_mean_what_they_say(panel: dict[str, Any]) -> None:
    given = {each["matcher"]["options"]: each["properties"][0]["value"] for each in panel["fieldConfig"]["overrides"]}
    colours = {legend: colour["fixedColor"] for legend, colour in given.items()}
    if "by (state)" in panel["targets"][0]["expr"] and "droveway_migrations_total" in panel["targets"][0]["expr"]:
        assert (colours["completed"], colours["failed"]) == ("green", "red")


@pytest.mark.parametrize("name", pages())
def test_rows_of_a_page_are_full(name: str) -> None:
    """Beside a panel that is too wide for what is left of its row Grafana leaves a hole."""
    widths: dict[int, int] = {}
    for panel in pages()[name]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24, panel["title"]
        widths[at["y"]] = widths.get(at["y"], 0) + at["w"]
    assert set(widths.values()) == {24}, widths


def test_a_runbook_leads_to_others_within_grafana() -> None:
    shown = [panel["options"]["content"] for panel in pages()["droveway-runbooks.json"]]
    targets = [target for content in shown for target in re.findall(r"\]\(([^)]+)\)", content)]
    assert targets
    assert [
        target for target in targets if not target.startswith(("/d/droveway-runbooks?viewPanel=", "https://"))
    ] == []


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("where", "expression", "legend", "says"), [pytest.param(*each, id=each[0]) for each in queries()]
)
def test_a_query_finds_what_happened(seen: Watched, where: str, expression: str, legend: str, says: bool) -> None:
    """What should never happen is filtered to what did, and the panel then says that there is none."""
    found = seen.over(filled(expression)) or (says and seen.over(filled(expression).removesuffix(" > 0")))
    assert found, f"no data for {filled(expression)}"
    named = set(re.findall(r"{{(\w+)}}", legend))
    assert all(named <= series["metric"].keys() for series in found), f"{legend} names what no series has"
    if legend == "__auto":
        assert len(found) == 1, "several series, and nothing tells them apart"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel["title"])
def test_the_series_of_a_panel_can_be_drawn_and_told_apart(seen: Watched, panel: dict[str, Any]) -> None:
    """One series that begins with NaN leaves a whole panel without lines; two of one name are a riddle."""
    legends = []
    for target in panel["targets"]:
        for series in seen.every(filled(target["expr"])):
            legends.append(legend_of(target, series["metric"]))
            assert "NaN" not in {value for _, value in series["values"]}, f"{legends[-1]} of {target['expr']}"
    assert sorted(set(legends)) == sorted(legends)
    assert len(legends) <= MOST_SERIES


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("where", "metric", "label"), variables())
def test_there_is_something_to_choose_from(seen: Watched, where: str, metric: str, label: str) -> None:
    found = seen.over(filled(metric))
    assert found
    assert all(series["metric"][label] for series in found)


@pytest.mark.timeout(600)
def test_a_move_between_two_hosts_is_shown_at_first(seen: Watched) -> None:
    """Not one from a host to itself: the destination is chosen among the others."""
    (asked,) = [metric for name, metric, _ in variables() if "migration" in name and "$source" in metric]
    assert {series["metric"]["host"] for series in seen.over(filled(asked))} == {"beta", "gamma"}
