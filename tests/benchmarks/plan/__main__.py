"""`make bench-plan`: how long planning takes, what it needs, and how good the plan is, on simulated clusters."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tasks.inventory.simulated import simulate
from tests.benchmarks.document import document
from tests.benchmarks.plan.cases import CASES
from tests.benchmarks.plan.report import bars, growth, table

RESULTS = Path(__file__).resolve().parent.parent / "results" / "plan.json"


def main() -> int:
    """Run and report; see --help for what the exit code says."""
    arguments = _arguments()
    if arguments.case:
        print(json.dumps(_measure(arguments.case)))
        return 0
    if arguments.readme:
        print(table(json.loads(RESULTS.read_text())))
        return 0
    chosen = [name for name, case in CASES.items() if case.quick or not arguments.quick]
    runs = [_in_a_child(name) for name in chosen]
    results = {"machine": _machine(), "date": datetime.datetime.now(datetime.UTC).date().isoformat(), "runs": runs}
    if arguments.output or not arguments.quick:
        (arguments.output or RESULTS).write_text(document(results))
    print(table(results), *growth(results), *bars(results), sep="\n")
    return 0 if all(bar.met for bar in bars(results)) else 1


def _measure(name: str) -> dict[str, Any]:
    """From the Cluster value to the plan with its schedule. The peak is the whole process's, cluster included."""
    case = CASES[name]
    cluster = simulate(case.line)
    start = time.perf_counter()
    found = case.run(cluster)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
    return {"case": name, "seconds": seconds, "peak_gib": peak, **found}


def _in_a_child(name: str) -> dict[str, Any]:
    """Each case has a process of its own: a peak of memory is never forgotten by the one that reached it."""
    print(name, file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "tests.benchmarks.plan", "--case", name]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return dict(json.loads(said))


def _machine() -> dict[str, Any]:
    return {"cpus": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.plan",
        description="Plans the evacuation of 1 of 100, 10 of 1,000 and 100 of 10,000 simulated hosts with twenty "
        "guests each, of 4 of 100 and 10 of 1,000 that are nearly full with and without a solver, and the rebalancing "
        "of 1,000. Writes JSON, prints a table and one line for each bar. The exit "
        "code is 1 when a bar is short.",
        epilog="Takes a minute, ten seconds with --quick.",
    )
    parser.add_argument("--quick", action="store_true", help="leave the 10,000 hosts out; keep no results")
    parser.add_argument("--output", type=Path, help="where the JSON goes (default: the results kept)")
    parser.add_argument("--readme", action="store_true", help="print the table of the results kept, and run nothing")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
