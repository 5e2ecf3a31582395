"""From measurements to bars and a table. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from tests.benchmarks.plan.cases import CASES
from tests.benchmarks.rdma.report import Bar

Results = Mapping[str, Any]
"""As tests/benchmarks/results/plan.json holds them: machine, date, runs."""


def bars(results: Results) -> list[Bar]:
    """One for every promise about a case that was run."""
    return [
        Bar(f"{run['case']}-{name}", run[name], limit)
        for run in results["runs"]
        for name, limit in CASES[run["case"]].most.items()
    ]


def growth(results: Results) -> list[str]:
    """How many times as long each evacuation takes as the one of a tenth of its hosts."""
    evacuations = [run for run in results["runs"] if run["case"].startswith("evacuate-")]
    return [
        f"{more['case']}: {more['seconds'] / less['seconds']:.1f} times {less['case']}"
        for less, more in pairwise(evacuations)
    ]


def table(results: Results) -> str:
    """Markdown."""
    lines = [
        "| | planning | peak memory | moves | refused | makespan | by its lower bound | score |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for run in results["runs"]:
        cells = (
            run["case"].replace("-", " "),
            f"{run['seconds']:.3f} s",
            f"{run['peak_gib'] * 1024:.0f} MiB",
            f"{run['moves']}",
            f"{run['refused']}",
            f"{run['makespan']:.0f} s",
            f"{run['makespan_ratio']:.3f}",
            f"{run['score_before']:.3f} → {run['score_after']:.3f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
