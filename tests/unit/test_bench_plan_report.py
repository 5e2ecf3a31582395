"""The planning benchmark promises what it says, and a short bar is seen."""

from __future__ import annotations

from typing import Any

from tests.benchmarks.plan.cases import CASES
from tests.benchmarks.plan.report import bars, growth, table


def run(case: str, **changes: Any) -> dict[str, Any]:
    plain = {"case": case, "seconds": 1.0, "peak_gib": 0.1, "moves": 20, "refused": 0, "makespan": 100.0}
    good = {"makespan_ratio": 1.0, "moves_ratio": 1.0, "score_before": 0.5, "score_after": 0.4}
    return plain | good | changes


def test_every_promise_of_a_case_is_judged_and_only_those_that_are_short_are_short() -> None:
    results = {"runs": [run("evacuate-10-of-1000", seconds=2.5), run("evacuate-100-of-10000", makespan_ratio=1.06)]}
    assert [bar.name for bar in bars(results) if not bar.met] == [
        "evacuate-10-of-1000-seconds",
        "evacuate-100-of-10000-makespan_ratio",
    ]
    assert len(bars(results)) == sum(len(CASES[each["case"]].most) for each in results["runs"])


def test_growth_is_told_from_one_size_to_the_next() -> None:
    runs = [run("evacuate-1-of-100", seconds=0.5), run("evacuate-10-of-1000", seconds=6.0)]
    assert growth({"runs": runs}) == ["evacuate-10-of-1000: 12.0 times evacuate-1-of-100"]


def test_the_table_has_a_row_for_each_case() -> None:
    said = table({"runs": [run("evacuate-1-of-100")]}).splitlines()
    assert said[2:] == ["| evacuate 1 of 100 | 1.000 s | 102 MiB | 20 | 0 | 100 s | 1.000 | 0.500 → 0.400 |"]
