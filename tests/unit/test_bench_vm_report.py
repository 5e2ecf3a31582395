"""The VM benchmark's arithmetic: ratios within a round, bars, and what is said of moves that went wrong."""

from __future__ import annotations

from typing import Any

import pytest

from tests.benchmarks.vm.cases import CASES, CONTESTANTS
from tests.benchmarks.vm.report import bars, order, ratio, table, values

_TOTAL = {"qemu": 4.0, "droveway": 3.0, "droveway-verified": 5.0}


def run(case: str, contestant: str, number: int, **more: Any) -> dict[str, Any]:
    measured = {"total": _TOTAL[contestant] * 2.0**number, "felt": 0.1, "downtime": 0.05, "cpu": 9.0, "guest_cpu": 2.0}
    measured |= {"sent": 1 << 30, "rounds": 3, "written_meanwhile": 0.0, "usual_tick": 0.003, "host_load": 1.0}
    return {"case": case, "contestant": contestant, "round": number, "bad": 0, "silent": False} | measured | more


def results() -> dict[str, Any]:
    """Two rounds, the second twice as slow as the first."""
    runs = [run(case, one, number) for number in (1, 2) for case in CASES for one in CONTESTANTS]
    return {"machine": {"cpus": 2, "kernel": "6.1", "qemu": "7.2"}, "date": "2026-01-01", "runs": runs}


def test_ratios_are_taken_within_a_round() -> None:
    assert ratio(results(), "idle", "total") == pytest.approx(0.75)


def test_every_promise_has_its_bar() -> None:
    assert bars(results()) == [
        "bar: idle-total/qemu 0.750 <= 1.000 met",
        "bar: idle-felt-downtime/qemu 1.000 <= 1.000 met",
        "bar: dirty-total/qemu 0.750 <= 1.000 met",
        "bar: dirty-felt-downtime/qemu 1.000 <= 1.000 met",
    ]


def test_a_peer_that_never_ends_is_no_victory() -> None:
    found = results()
    found["runs"] = [each for each in found["runs"] if (each["case"], each["contestant"]) != ("dirty", "qemu")]
    lost = {"case": "dirty", "contestant": "qemu", "not_moved": "too slow", "bad": 0, "silent": False}
    found["runs"] += [lost | {"round": number, "usual_tick": 0.003, "host_load": 1.0} for number in (1, 2)]
    assert "bar: dirty-total/qemu not measured" in bars(found)
    text = table(found)
    assert "| writes 500 MB/s: QEMU `tcp`, multifd | did not end |" in text
    assert "2 of 4 moves did not come to an end" in " ".join(text.split())


def test_a_guest_that_did_not_survive_has_felt_nothing_and_is_told_of() -> None:
    found = results()
    for each in found["runs"]:
        if (each["case"], each["contestant"], each["round"]) == ("dirty", "qemu", 2):
            each |= {"silent": True, "felt": None}
    assert values(found, "dirty", "qemu", "felt") == {1: 0.1}
    assert "1 of 4 guests did not survive" in " ".join(table(found).split())


def test_the_table_has_a_row_for_each() -> None:
    lines = table(results()).splitlines()
    assert sum(line.startswith(("| idle", "| writes")) for line in lines) == len(CASES) * len(CONTESTANTS)
    assert {line.count("|") for line in lines if line.startswith("|")} == {10}
    assert any(
        line.startswith("| idle: Droveway `tcp` | 9.00 s (6.00-12.00) | 100 ms | 50 ms | 9.0 s") for line in lines
    )


def test_neighbours_stay_neighbours_when_the_order_turns() -> None:
    assert list(order(2)) == list(reversed(order(1)))
