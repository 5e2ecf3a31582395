"""`droveway inventory` on a real Redis: what it prints can be read again, and says what plans must know."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tasks.inventory.file import read
from tasks.inventory.simulated import simulate
from tests.integration.console import GIB, Console


def test_the_live_fleet_is_printed_and_the_same_is_read_from_the_file(console: Console, tmp_path: Path) -> None:
    console("cordon", "beta", "--message", "a new board")
    console("blocker", "add", "guest", "web", "--reason", "a licence")
    code, out, _ = console("inventory")
    assert code == 0
    cluster = read(out)
    assert (cluster.hosts["alpha"].cordoned, cluster.hosts["beta"].cordoned) == (None, "a new board")
    assert (cluster.guests["web"].host, cluster.guests["web"].memory) == ("alpha", GIB)
    assert cluster.guests["web"].stays == "a licence"
    kept = tmp_path / "fleet.txt"
    kept.write_text(out)
    assert console("inventory", "--file", str(kept))[1] == out
    said = console.said("inventory", "--file", str(kept))
    assert [host["name"] for host in said["hosts"]] == ["alpha", "beta"]
    assert said["guests"][0]["groups"] == []


def test_the_json_of_the_live_fleet_is_a_fleet_to_plan_on_as_well(
    console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, live = tmp_path / "fleet.json", console.said("evacuate", "alpha", "--plan")
    kept.write_text(f"\n{console('inventory', '--json')[1]}")
    monkeypatch.setenv("DROVEWAY_REDIS__URL", "unix:///nowhere")
    assert console.said("inventory", "--file", str(kept)) == json.loads(kept.read_text())
    assert console.said("evacuate", "alpha", "--plan", "--file", str(kept)) == live
    kept.write_text('{"version": 1, "hosts": []}')
    code, _, err = console("inventory", "--file", str(kept))
    assert (code, f"{kept}: guests: Field required" in err) == (2, True)


def test_one_that_is_made_up_needs_no_redis(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DROVEWAY_REDIS__URL", "unix:///nowhere")
    code, out, _ = console("inventory", "--simulate", "hosts=3,guests=9,seed=2")
    assert code == 0
    assert read(out) == simulate("hosts=3,guests=9,seed=2")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--file", "/nowhere/fleet.txt"), "/nowhere/fleet.txt cannot be read"),
        (("--simulate", "hots=3"), "hosts"),
        (("--simulate", "hosts=3", "--file", "x"), "give one of them"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(console: Console, words: tuple[str, ...], said: str) -> None:
    code, _, err = console("inventory", *words)
    assert code == 2
    assert said in err
    assert "Traceback" not in err
