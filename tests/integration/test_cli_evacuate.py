"""`droveway evacuate`, `drain`, `history`, and `cancel` and `show` of a job, on a real Redis without workers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.inventory.simulated import simulate
from tests.integration.console import Console


def test_a_plan_says_what_would_go_where_and_touches_nothing(console: Console) -> None:
    plan = console.said("evacuate", "alpha", "--plan")
    assert [(move["guest"], move["source"], move["destination"]) for move in plan["moves"]] == [
        ("web", "alpha", "beta")
    ]
    assert (plan["refused"], plan["hosts"]) == ([], ["alpha"])
    assert plan["makespan_seconds"] == pytest.approx(plan["moves"][0]["seconds"])
    assert "1 moves, about" in console("drain", "alpha", "--plan")[1]
    assert console.said("blocker", "list") == {"blockers": []}
    assert console.said("history") == {"jobs": []}


def test_a_plan_may_be_looked_for_by_a_solver_where_that_is_installed(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = console.said("evacuate", "alpha", "--plan", "--solver", "cp-sat")
    assert [move["guest"] for move in plan["moves"]] == ["web"]
    monkeypatch.setattr("tasks.steps._ortools", lambda: False)
    code, _, err = console("evacuate", "alpha", "--solver", "cp-sat")
    assert (code, "pip install 'droveway[cp-sat]'" in err) == (4, True)
    assert console.said("history") == {"jobs": []}
    code, _, err = console("evacuate", "alpha", "--solver", "simplex")
    assert (code, "greedy" in err) == (2, True)


def test_a_plan_says_why_a_guest_stays(console: Console) -> None:
    console("blocker", "add", "guest", "web", "--reason", "a licence")
    (refused,) = console.said("evacuate", "alpha", "--plan")["refused"]
    assert (refused["guest"], "a licence" in refused["why"]) == ("web", True)


def test_a_plan_for_a_fleet_that_was_kept_or_made_up_needs_no_redis(
    console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DROVEWAY_REDIS__URL", "unix:///nowhere")
    kept = tmp_path / "fleet.txt"
    kept.write_text("host a memory=1G\nhost b memory=1G\nguest g on a memory=1M\n")
    (move,) = console.said("evacuate", "a", "--plan", "--file", str(kept))["moves"]
    assert (move["guest"], move["destination"]) == ("g", "b")
    made_up = console.said("evacuate", "host-1", "--plan", "--simulate", "hosts=9,guests=90,seed=1")
    assert len(made_up["moves"]) + len(made_up["refused"]) == len(
        simulate("hosts=9,guests=90,seed=1").residents["host-1"]
    )


def test_one_is_begun_shown_listed_and_cancelled(console: Console) -> None:
    job = console.said("drain", "alpha", "--message", "a new board", "--detach")
    assert (job["state"], job["hosts"], job["message"]) == ("running", ["alpha"], "a new board")
    assert (job["guests"]["web"]["host"], len(job["migrations"])) == ("alpha", 1)
    assert "cordoned: a new board" in console("hosts")[1]
    assert console.said("show", job["job"])["guests"]["web"]["fate"] in {"waiting", "moving"}
    assert job["job"] in console("history")[1]
    code, _, err = console("evacuate", "alpha", "--detach")
    assert (code, job["job"] in err) == (3, True)
    assert console.said("cancel", job["job"])["state"] in {"ending", "cancelled"}
    code, _, err = console("show", job["job"], "--watch")
    assert code == 7
    assert "it was cancelled; 1 of 1 guests stay" in err
    assert console.said("history")["jobs"][0]["state"] == "cancelled"
    assert console.said("list")["migrations"][0]["state"] == "cancelled"


def test_an_empty_host_is_evacuated_at_once_and_the_code_is_0(console: Console) -> None:
    code, out, _ = console("evacuate", "beta")
    assert code == 0
    assert "completed: there was no guest" in out


def test_what_can_go_nowhere_ends_it_with_the_reason(console: Console) -> None:
    console("cordon", "beta", "--message", "a leak")
    code, out, err = console("evacuate", "alpha")
    assert code == 6
    assert "nothing more can be moved; 1 of 1 guests stay" in err
    assert "refused" in out


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("evacuate",), 2, "HOST"),
        (("evacuate", "alfa"), 3, "did you mean alpha"),
        (("evacuate", "alfa", "--plan"), 3, "did you mean alpha"),
        (("evacuate", "alpha", "--file", "fleet.txt"), 2, "--file is a fleet to plan on"),
        (("evacuate", "alpha", "--simulate", "hosts=3"), 2, "add --plan"),
        (("evacuate", "alpha", "--plan", "--file", "/nowhere/fleet.txt"), 2, "cannot be read"),
        (("evacuate", "host-7", "--plan", "--simulate", "hosts=3"), 3, "No host host-7 is known"),
        (("evacuate", "ALPHA"), 2, "cannot name a host"),
        (("evacuate", "alpha", "--deadline", "soon"), 2, "soon"),
        (("evacuate", "alpha", "--max-parallel", "0"), 2, "max-parallel"),
        (("evacuate", "alpha", "--message", " "), 2, "say why"),
        (("cancel", "e-none"), 3, "no migration e-none"),
        (("show", "e-none"), 3, "no migration e-none"),
        (("show", "m-none", "--watch"), 2, "is no job"),
    ],
)
def test_bad_input_is_refused_in_a_sentence_and_closes_no_host(
    console: Console, words: tuple[str, ...], code: int, said: str
) -> None:
    got, _, err = console(*words)
    assert got == code
    assert said in err
    assert console.said("blocker", "list") == {"blockers": []}
