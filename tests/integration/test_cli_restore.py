"""`droveway restore`, and `droveway evacuate --apply`, on a real Redis without workers."""

from __future__ import annotations

import io
import json
import os
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from config.settings import load_settings
from tasks.ledger.ledger import Ledger
from tests.integration.console import Console
from tests.integration.scripted_fleet import lived


def run_to_its_end(job: str) -> None:
    with closing(Ledger(load_settings(Path(os.devnull)))) as ledger:
        lived(ledger, job)


def evacuate_alpha(console: Console) -> str:
    job: str = console.said("evacuate", "alpha", "--detach")["job"]
    run_to_its_end(job)
    return job


def test_a_host_is_opened_whoever_closed_it_and_again_is_no_error(console: Console) -> None:
    console("cordon", "alpha", "--message", "a leak")
    assert console.said("restore", "alpha", "beta") == {"uncordoned": ["alpha"], "guests": {}}
    assert console.said("blocker", "list") == {"blockers": []}
    code, out, _ = console("restore", "alpha")
    assert (code, "guests may come again" in out) == (0, True)


def test_the_guest_comes_back_and_the_job_is_shown_and_listed(console: Console) -> None:
    evacuate_alpha(console)
    plan = console.said("restore", "alpha", "--bring-back", "--plan")
    assert [(move["guest"], move["source"], move["destination"]) for move in plan["moves"]] == [
        ("web", "beta", "alpha")
    ]
    assert "1 guests come back to alpha" in console("restore", "alpha", "--plan")[1]
    assert console.said("blocker", "list")["blockers"] != []
    job = console.said("restore", "alpha", "--bring-back", "--detach")
    assert (job["kind"], job["state"], job["hosts"]) == ("restore", "running", ["alpha"])
    run_to_its_end(job["job"])
    assert console("show", job["job"], "--watch")[0] == 0
    assert console.said("show", job["job"])["guests"]["web"]["host"] == "alpha"
    assert [each["kind"] for each in console.said("history")["jobs"]] == ["restore", "evacuation"]
    assert "restore alpha" in console("history")[1]
    code, out, _ = console("restore", "alpha", "--bring-back")
    assert (code, "nobody is brought back" in out) == (0, True)


def test_who_cannot_come_back_is_said_and_the_code_says_so(console: Console) -> None:
    evacuate_alpha(console)
    console("blocker", "add", "guest", "web", "--reason", "a licence")
    (refused,) = console.said("restore", "alpha", "--plan")["refused"]
    assert (refused["guest"], refused["rule"]) == ("web", "pinned")
    assert "a licence" in console("restore", "alpha", "--plan")[1]
    code, out, err = console("restore", "alpha", "--bring-back")
    assert (code, "a licence" in out) == (6, True)
    assert "nothing more can be moved; 1 of 1 guests stay" in err


def test_an_evacuation_that_is_under_way_is_ended_first(console: Console) -> None:
    job = console.said("evacuate", "alpha", "--detach")["job"]
    for words in ((), ("--bring-back",), ("--plan",)):
        code, _, err = console("restore", "alpha", *words)
        assert (code, f"droveway cancel {job}" in err) == (3, True)
    assert console.said("blocker", "list")["blockers"] != []


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("restore",), 2, "HOST"),
        (("restore", "alfa"), 3, "did you mean alpha"),
        (("restore", "ALPHA"), 2, "cannot name a host"),
        (("restore", "alpha", "--message", " "), 2, "say why"),
        (("restore", "alpha", "--max-parallel", "0"), 2, "max-parallel"),
    ],
)
def test_bad_input_is_refused(console: Console, words: tuple[str, ...], code: int, said: str) -> None:
    got, _, err = console(*words)
    assert (got, said in err) == (code, True), err


# --- evacuate --apply -------------------------------------------------------------------------------------------------


def kept_plan(console: Console, tmp_path: Path, **change: Any) -> str:
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(console.said("evacuate", "alpha", "--plan") | change))
    return str(file)


def test_a_plan_that_was_kept_is_followed_and_names_the_hosts(console: Console, tmp_path: Path) -> None:
    file = kept_plan(console, tmp_path)
    job = console.said("evacuate", "--apply", file, "--detach")
    assert (job["kind"], job["hosts"], len(job["migrations"])) == ("evacuation", ["alpha"], 1)
    assert "cordoned: evacuation" in console("hosts")[1]
    assert [each["destination"]["host"] for each in console.said("list")["migrations"]] == ["beta"]


def test_a_plan_is_read_from_standard_input(console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Path(kept_plan(console, tmp_path)).read_bytes()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(plan)))
    assert console.said("evacuate", "alpha", "--apply", "-", "--detach")["hosts"] == ["alpha"]


@pytest.mark.parametrize(
    ("change", "words", "code", "said"),
    [
        ({}, ("beta",), 2, "the plan empties alpha, not beta"),
        ({}, ("--plan",), 2, "give one of them"),
        ({"version": 2}, (), 2, "of version 2"),
        ({"colour": "red"}, (), 2, "wrong at colour"),
        ({"hosts": ["alfa"]}, (), 3, "did you mean alpha"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_and_closes_no_host(
    console: Console, tmp_path: Path, change: dict[str, Any], words: tuple[str, ...], code: int, said: str
) -> None:
    got, _, err = console("evacuate", "--apply", kept_plan(console, tmp_path, **change), *words)
    assert (got, said in err) == (code, True), err
    assert console.said("blocker", "list") == {"blockers": []}
