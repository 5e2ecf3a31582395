"""Each alert fires when it should and is silent otherwise, by promtool; and a real Prometheus runs every rule."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.ops.watched_fleet import Watched

OPS = Path(__file__).parents[2] / "ops"
RULES = sorted((OPS / "prometheus" / "rules").glob("*.yml"))
TESTS = sorted((OPS / "prometheus" / "tests").glob("*.yml"))


def alerts() -> list[dict[str, Any]]:
    groups = [group for path in RULES for group in yaml.safe_load(path.read_text())["groups"]]
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


def recorded() -> list[dict[str, Any]]:
    groups = [group for path in RULES for group in yaml.safe_load(path.read_text())["groups"]]
    return [rule for group in groups for rule in group["rules"] if "record" in rule]


def names(rules: list[dict[str, Any]]) -> list[str]:
    return [rule["alert"] for rule in rules]


def promtool(*arguments: str | Path) -> None:
    run = subprocess.run(["promtool", *map(str, arguments)], check=False, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_configuration_and_its_rules_are_read(prometheus_installed: None) -> None:
    promtool("check", "config", OPS / "prometheus" / "prometheus.yml")


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_a_rule_does_what_its_test_says(prometheus_installed: None, path: Path) -> None:
    promtool("test", "rules", path)


@pytest.mark.parametrize("alert", alerts(), ids=names(alerts()))
def test_an_alert_has_a_runbook_and_a_test_of_its_firing_and_its_silence(alert: dict[str, Any]) -> None:
    runbook = OPS.parent / alert["annotations"]["runbook_url"]
    assert alert["alert"] in runbook.read_text()
    assert alert["labels"]["severity"] in {"warning", "critical"}
    asked = [
        bool(case.get("exp_alerts"))
        for test in yaml.safe_load((OPS / "prometheus" / "tests" / f"{runbook.stem}.yml").read_text())["tests"]
        for case in test["alert_rule_test"]
        if case["alertname"] == alert["alert"]
    ]
    assert True in asked, "nothing shows that it fires"
    assert False in asked, "nothing shows that it is silent"


@pytest.mark.timeout(600)
def test_prometheus_runs_every_rule_without_an_error(seen: Watched) -> None:
    groups = seen.prometheus.ask("rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert {rule["name"] for rule in rules if rule["type"] == "alerting"} == set(names(alerts()))
    assert [rule for rule in rules if rule["health"] != "ok"] == []


@pytest.mark.timeout(600)
@pytest.mark.parametrize("rule", recorded(), ids=lambda rule: rule["record"])
def test_what_is_recorded_is_there(seen: Watched, rule: dict[str, Any]) -> None:
    assert seen.over(rule["record"]), f"nothing was recorded by {rule['expr']}"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("alert", alerts(), ids=names(alerts()))
def test_an_alert_asks_for_what_there_is(seen: Watched, alert: dict[str, Any]) -> None:
    asked = set(re.findall(r"[a-z:]*droveway_\w+(?::\w+)?", alert["expr"]))
    assert asked
    assert {metric for metric in asked if not seen.over(metric)} == set()


COMMAND = re.compile(r"^ {4,}droveway ([a-z-]+)", re.MULTILINE)


@pytest.mark.parametrize("path", sorted((OPS / "runbooks").glob("*.md")), ids=lambda path: path.stem)
def test_a_runbook_names_commands_that_exist(path: Path) -> None:
    import click

    from tasks.cli.main import cli

    there = set(cli().list_commands(click.Context(cli())))
    named = set(COMMAND.findall(path.read_text()))
    assert named, "a runbook says how to look"
    assert named <= there
