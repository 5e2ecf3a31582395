"""Plans as readable files: a cluster, what is asked, and the plan that must come of it, word for word.

To write one: a comment that says what it shows, the cluster in the form of tasks/inventory/file.py, a line `evacuate
HOST... [--solver cp-sat]`, and after a line `expect:` the lines that `_said` below makes of the plan. Leave `expect:`
empty and run it: the difference shows what the planner says now; keep it only once it is what an operator would want.
"""

from __future__ import annotations

from difflib import unified_diff
from pathlib import Path

import pytest

from tasks.inventory.file import read
from tasks.planning.cluster import Cluster
from tasks.planning.evacuation import Plan, Solver, plan_evacuation
from tests.replay import replay

FILES = sorted((Path(__file__).parent / "plan").glob("*.txt"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_plan_is_what_the_file_expects(path: Path) -> None:
    asked, _, expected = path.read_text("utf-8").partition("\nexpect:\n")
    lines = asked.splitlines()
    assert lines[0].startswith("# "), "say what it shows"
    hosts, _, solver = next(line for line in lines if line.startswith("evacuate "))[9:].partition(" --solver ")
    cluster = read("\n".join(line for line in lines if not line.startswith("evacuate ")), path.name)
    found = _planned(cluster, hosts.split(), Solver(solver or Solver.GREEDY))
    assert found == expected, "\n".join(unified_diff(expected.splitlines(), found.splitlines(), "expected", "found"))


def test_there_are_enough_of_them_and_each_says_something_else() -> None:
    assert len(FILES) >= 20
    assert len({path.read_text("utf-8").partition("\nexpect:\n")[0] for path in FILES}) == len(FILES)


def _planned(cluster: Cluster, hosts: list[str], solver: Solver) -> str:
    try:
        plan = plan_evacuation(cluster, hosts, solver=solver)
    except ValueError as error:
        return f"{error}\n"
    if solver is Solver.CP_SAT:
        assert len(plan_evacuation(cluster, hosts).refused) > len(plan.refused), "a solver is not needed here"
    assert replay(cluster, plan.schedule).guests == plan.predicted.guests
    return _said(plan)


def _said(plan: Plan) -> str:
    lines = []
    for timed in plan.schedule.moves:
        move, estimate = timed.move, timed.estimate
        lines.append(
            f"move {move.guest} {move.source} -> {move.destination}, wave {timed.wave}, from {timed.start:.1f} s to"
            f" {timed.end:.1f} s"
        )
        if not estimate.converges:
            lines.append(f"  does not converge: {estimate.reason}")
    lines += [f"refused {guest} {refusal.rule}: {refusal.why}" for guest, refusal in plan.refused]
    if plan.schedule.moves:
        lines.append(f"{plan.schedule.makespan:.1f} s in all, no order takes less than {plan.schedule.lower_bound:.1f}")
    return "".join(f"{line}\n" for line in lines)
