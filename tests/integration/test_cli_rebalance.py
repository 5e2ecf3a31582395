"""`droveway rebalance` on a real Redis without workers: what it plans, asks for, and leaves alone."""

from __future__ import annotations

import json
import os
from contextlib import closing
from pathlib import Path

import pytest

from config.settings import load_settings
from tasks.ledger.ledger import Ledger
from tasks.records import LocalGuest
from tests.integration.console import GIB, OFFERED, Console
from workers.pairing.contract import Side


def crowd_alpha() -> None:
    """Alpha has three guests of 1 GiB of its 4, beta none."""
    with closing(Ledger(load_settings(Path(os.devnull)))) as ledger:
        for side in Side:
            ledger.heartbeat("alpha", side, OFFERED, [], [LocalGuest(name, GIB, 0) for name in ("web", "db", "mail")])


def test_a_plan_says_what_evens_out_and_moves_nothing(console: Console) -> None:
    crowd_alpha()
    plan = console.said("rebalance", "--plan")
    assert [(move["source"], move["destination"]) for move in plan["moves"]] == [("alpha", "beta")]
    assert plan["imbalance_after"] < plan["imbalance_before"]
    assert console.said("list") == {"migrations": []}
    assert "imbalance" in console("rebalance", "--plan")[1]


def test_a_plan_for_a_fleet_that_was_kept_or_made_up_needs_no_redis(
    console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crowd_alpha()
    kept = tmp_path / "fleet.txt"
    kept.write_text(console("inventory")[1])
    live = console.said("rebalance", "--plan")
    monkeypatch.setenv("DROVEWAY_REDIS__URL", "unix:///nowhere")
    assert console.said("rebalance", "--plan", "--file", str(kept)) == live
    made_up = console.said("rebalance", "--plan", "--simulate", "hosts=20,guests=400,seed=1,skew=0.9")
    assert made_up["imbalance_after"] < made_up["imbalance_before"]


def test_its_moves_are_made_by_a_job_of_which_there_is_one_at_a_time(console: Console) -> None:
    crowd_alpha()
    job = console.said("rebalance", "--detach", "--message", "it is uneven")
    assert (job["kind"], job["state"], job["hosts"], job["message"]) == ("rebalance", "running", [], "it is uneven")
    (wanted,) = job["moves"]
    (listed,) = console.said("list")["migrations"]
    assert (listed["guest"], listed["destination"]["host"]) == (wanted["guest"], "beta")
    assert job["imbalance_after"] < job["imbalance_before"]
    code, _, err = console("rebalance", "--detach")
    assert (code, job["job"] in err) == (3, True)
    assert "rebalance" in console("history")[1]
    assert "as planned" in console("show", job["job"])[1]
    assert console.said("cancel", job["job"])["state"] in {"ending", "cancelled"}
    code, _, err = console("show", job["job"], "--watch")
    assert (code, "it was cancelled; 1 of 1 guests stay" in err) == (7, True)


def test_an_even_fleet_stays_still_and_says_why(console: Console) -> None:
    crowd_alpha()
    with closing(Ledger(load_settings(Path(os.devnull)))) as ledger:
        for side in Side:
            ledger.heartbeat("beta", side, OFFERED, [], [LocalGuest(name, GIB, 0) for name in ("b1", "b2", "b3")])
    said = console.said("rebalance")
    assert said["job"] is None
    assert "not above the target" in said["reason"]
    assert "nothing is to be moved" in console("rebalance")[1]
    assert console.said("history") == {"jobs": []}


def test_nothing_is_asked_for_while_an_evacuation_needs_the_slots(console: Console) -> None:
    crowd_alpha()
    job = console.said("evacuate", "alpha", "--detach")["job"]
    code, out, _ = console("rebalance", "--json")
    assert (code, json.loads(out)["error"]["reason"], job in out) == (3, "evacuating", True)
    assert console("rebalance", "--plan")[0] == 0


def test_a_plan_that_was_kept_is_made_as_it_is(console: Console, tmp_path: Path) -> None:
    crowd_alpha()
    file = tmp_path / "plan.json"
    plan = console.said("rebalance", "--plan")
    plan["moves"][0]["guest"] = "mail"
    file.write_text(json.dumps(plan))
    job = console.said("rebalance", "--apply", str(file), "--detach")
    assert [move["guest"] for move in job["moves"]] == ["mail"]
    assert [each["guest"] for each in console.said("list")["migrations"]] == ["mail"]
    assert job["imbalance_before"] == plan["imbalance_before"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 2}, "of version 2"),
        ({"colour": "red"}, "wrong at colour"),
        ({"moves": [{"guest": "web"}]}, "wrong at moves.0"),
        ({"hosts": ["alpha"], "imbalance_before": None}, "wrong at"),
    ],
)
def test_a_plan_that_is_not_as_it_was_printed_is_refused(
    console: Console, tmp_path: Path, change: dict[str, object], said: str
) -> None:
    crowd_alpha()
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(console.said("rebalance", "--plan") | change))
    code, _, err = console("rebalance", "--apply", str(file))
    assert (code, said in err) == (2, True), err
    assert console.said("history") == {"jobs": []}


@pytest.mark.parametrize(("field", "typo", "said"), [("destination", "betta", "beta"), ("guest", "wep", "web")])
def test_a_plan_that_names_what_is_unknown_is_refused(
    console: Console, tmp_path: Path, field: str, typo: str, said: str
) -> None:
    crowd_alpha()
    file = tmp_path / "plan.json"
    plan = console.said("rebalance", "--plan")
    plan["moves"][0][field] = typo
    file.write_text(json.dumps(plan))
    code, _, err = console("rebalance", "--apply", str(file))
    assert (code, f"did you mean {said}" in err) == (3, True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--max-moves", "0"), "max-moves"),
        (("--simulate", "hosts=3"), "--simulate is a fleet to plan on"),
        (("--plan", "--simulate", "hosts=3", "--file", "x"), "give one of them"),
        (("--apply", "/nowhere/plan.json"), "plan.json"),
        (("--apply", os.devnull), "no JSON"),
        (("--apply", os.devnull, "--plan"), "give one of them"),
        (("--deadline", "soon"), "soon"),
        (("--message", " "), "say why"),
    ],
)
def test_bad_input_is_refused(console: Console, words: tuple[str, ...], said: str) -> None:
    code, _, err = console("rebalance", *words)
    assert (code, said in err) == (2, True), err
