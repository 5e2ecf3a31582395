"""`droveway rebalance` on a real Redis without workers: what it plans, asks for, and leaves alone."""

from __future__ import annotations

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


def test_its_moves_are_asked_for_once(console: Console) -> None:
    crowd_alpha()
    first = console.said("rebalance")
    assert len(first["migrations"]) == 1
    (listed,) = console.said("list")["migrations"]
    assert (listed["guest"], listed["migration"]) == next(iter(first["migrations"].items()))
    assert console.said("rebalance")["migrations"] == {}


def test_an_even_fleet_stays_still_and_says_why(console: Console) -> None:
    crowd_alpha()
    with closing(Ledger(load_settings(Path(os.devnull)))) as ledger:
        for side in Side:
            ledger.heartbeat("beta", side, OFFERED, [], [LocalGuest(name, GIB, 0) for name in ("b1", "b2", "b3")])
    said = console.said("rebalance")
    assert said["migrations"] == {}
    assert "not above the target" in said["reason"]


def test_nothing_is_asked_for_while_an_evacuation_needs_the_slots(console: Console) -> None:
    crowd_alpha()
    job = console.said("evacuate", "alpha", "--detach")["job"]
    code, _, err = console("rebalance")
    assert (code, job in err) == (3, True)
    assert console("rebalance", "--plan")[0] == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--max-moves", "0"), "max-moves"),
        (("--simulate", "hosts=3"), "--simulate is a fleet to plan on"),
        (("--plan", "--simulate", "hosts=3", "--file", "x"), "give one of them"),
    ],
)
def test_bad_input_is_refused(console: Console, words: tuple[str, ...], said: str) -> None:
    code, _, err = console("rebalance", *words)
    assert (code, said in err) == (2, True)
