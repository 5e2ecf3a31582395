"""What Prometheus answers to all that a dashboard asks; it stands where Grafana's back end would be."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tests.ops.prometheus_server import PrometheusServer

#: The four scrapes that Grafana takes, one a second here, and some that a busy machine is late with.
_RATE_INTERVAL = "10s"


def answered(prometheus: PrometheusServer, board: dict[str, Any], begin: float, end: float) -> dict[str, Any]:
    """A dashboard with what its panels show between `begin` and `end`, for app.jsx.

    `series`: by panel, each with its `name`, `labels` and `values`, pairs of a second and a number as text; `chosen`:
    what its variables say, by label; `begin`, `end` and `step` in seconds.
    """
    step = max(1, round((end - begin) / 100))
    known = {"__rate_interval": _RATE_INTERVAL, "__range": f"{round(end - begin)}s"}
    chosen = {}
    for variable in board["templating"].get("list") or []:
        if variable.get("includeAll"):
            known[variable["name"]], chosen[variable["label"]] = variable["allValue"], "All"
        else:
            first = _choices(prometheus, _filled(variable["query"], known), begin, end)[0]
            known[variable["name"]], chosen[variable["label"]] = first, first

    def series(panel: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for target in panel.get("targets", []):
            query = _filled(target["expr"], known)
            if target["instant"]:
                found = prometheus.ask("query", query=query, time=end)["result"]
            else:
                found = prometheus.ask("query_range", query=query, start=begin, end=end, step=step)["result"]
            for each in found:
                values = each["values"] if "values" in each else [each["value"]]
                yield {"name": _name(target, query, each["metric"]), "labels": each["metric"], "values": values}

    found = {panel["id"]: list(series(panel)) for panel in board["panels"]}
    return {"board": board, "series": found, "chosen": chosen, "begin": begin, "end": end, "step": step}


def _filled(text: str, known: dict[str, str]) -> str:
    for name, value in known.items():
        text = re.sub(rf"\${name}\b", lambda _, value=value: value, text)
    assert "$" not in text, f"a variable of {text} is not known here"
    return text


def _choices(prometheus: PrometheusServer, query: str, begin: float, end: float) -> list[str]:
    asked = re.fullmatch(r"label_values\((.+), (\w+)\)", query)
    assert asked, query
    found = prometheus.ask("series", **{"match[]": asked[1], "start": begin, "end": end})
    return sorted({each[asked[2]] for each in found})


def _name(target: dict[str, Any], query: str, labels: dict[str, str]) -> str:
    """What Grafana calls a series; with "" its components make a name of its labels."""
    if target["legendFormat"] == "__auto":
        return "" if labels else query
    return re.sub(r"{{(\w+)}}", lambda label: labels.get(label[1], ""), target["legendFormat"])
