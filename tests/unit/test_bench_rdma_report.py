"""The benchmark's arithmetic: ratios within a round, bars, and the noise of the downtime."""

from __future__ import annotations

from typing import Any

import pytest

from tests.benchmarks.rdma.contestants import CONTESTANTS, PIN_BUDGET, WATCHED
from tests.benchmarks.rdma.report import Bar, Spread, bars, folded, gigabits, noise, peak, ratio, seconds, table

#: Seconds in round 0.
_TOOK = {
    "qemu-pin-all": 2.0,
    "qemu-tcp": 3.0,
    "dynamic": 4.0,
    "pin-all": 5.0,
    "half-dynamic": 9.0,
    "half-pin-all": 10.0,
}


def results() -> dict[str, Any]:
    """Three rounds that count, each twice as slow as the one before."""
    runs = [
        {"contestant": name, "round": number, "seconds": 2.0**number * _TOOK.get(name, 1.0), "host_load": 1.5}
        for number in range(4)
        for name in CONTESTANTS
    ]
    moves = [{"pin_all": number % 2 == 1, "downtime": 0.1 + 0.01 * (number // 2)} for number in range(8)]
    return {
        "machine": {"cpus": 2, "kernel": "6.1", "qemu": "7.2", "rdma-core": "44.0"},
        "date": "2026-01-01",
        "runs": runs,
        "pinned": {name: [[0.0, 4096, 0], [0.1, PIN_BUDGET, 8192]] for name in WATCHED},
        "posting": {"fill": 5.0, "post": 20.0, "native": 0.25},
        "moves": moves,
    }


def test_the_first_round_does_not_count() -> None:
    assert seconds(results(), "qemu-dynamic") == {1: 2.0, 2: 4.0, 3: 8.0}


def test_ratios_are_taken_within_a_round() -> None:
    """Between rounds everything became twice as slow; the ratio does not move."""
    assert ratio(results(), "qemu-tcp", "qemu-dynamic") == Spread(3.0, 3.0, 3.0)


def test_a_round_that_only_one_of_them_ran_is_left_out() -> None:
    found = results()
    found["runs"] = [run for run in found["runs"] if (run["contestant"], run["round"]) != ("dynamic", 3)]
    found["runs"].append({"contestant": "qemu-dynamic", "round": 4, "seconds": 1e6, "host_load": 1.0})
    assert ratio(found, "dynamic", "qemu-dynamic") == Spread(4.0, 4.0, 4.0)


def test_every_promise_has_its_bar() -> None:
    lines = [str(bar) for bar in bars(results())]
    assert lines == [
        "bar: pin-all/qemu-pin-all 2.500 <= 0.850 short",
        "bar: dynamic/qemu-dynamic 4.000 <= 0.500 short",
        "bar: dynamic/pin-all 0.800 <= 1.000 met",
        "bar: half-dynamic/dynamic 2.250 <= 0.600 short",
        "bar: half-pin-all/pin-all 2.000 <= 0.600 short",
        "bar: windowed-pinned/pin-budget 1.000 <= 1.000 met",
        lines[-1],
    ]
    assert lines[-1].startswith("bar: downtime-pin-all/off-folded 1.000 <= 1.")
    assert lines[-1].endswith(" met")


def test_no_bar_is_made_up_for_what_was_not_measured() -> None:
    assert not bars(results() | {"runs": [], "moves": []})


def test_a_value_at_its_limit_is_met() -> None:
    assert Bar("x", 1.0, 1.0).met
    assert not Bar("x", 1.0001, 1.0).met


@pytest.mark.parametrize("over", [(4096, 0), (0, 4096)])
def test_neither_side_may_pin_a_page_more_than_the_budget(over: tuple[int, int]) -> None:
    found = results()
    found["pinned"]["windowed"] = [[0.0, PIN_BUDGET + over[0], PIN_BUDGET + over[1]], [0.1, 0, 0]]
    assert peak(found, "windowed") == (PIN_BUDGET + over[0], PIN_BUDGET + over[1])
    assert not bars(found)[5].met


@pytest.mark.parametrize("on", [0.2, 0.05])
def test_a_difference_counts_both_ways(on: float) -> None:
    assert folded([0.1] * 3, [on] * 3) == pytest.approx(2.0)


def test_noise_is_what_chance_makes_of_the_same_values() -> None:
    same = [0.10, 0.11, 0.09, 0.12, 0.08, 0.10, 0.11, 0.09, 0.10, 0.10]
    assert folded(same, same) == 1.0 < noise(same, same) < 1.2
    assert noise([0.1] * 10, [0.1] * 10) == 1.0
    slower = [value * 3 for value in same]
    assert folded(same, slower) > noise(same, slower), "a factor of three stands out"


def test_what_posting_allows() -> None:
    assert gigabits(8.388608) == pytest.approx(1000.0)


def test_the_table_has_a_row_for_each() -> None:
    lines = table(results()).splitlines()
    assert sum(line.startswith(("| QEMU", "| Droveway", "| half")) for line in lines) == len(CONTESTANTS)
    assert "| QEMU `rdma` | 4.00 | 2.00-8.00 | 64 | 64 MiB, 0 MiB |" in lines
