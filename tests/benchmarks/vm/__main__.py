"""`make bench-vm`: a virtual machine moved by QEMU itself and by Droveway, side by side on this machine."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from config.errors import DrovewayError
from tasks.app import bell_for
from tasks.cli.demo import ending_on_sigterm
from tasks.one_machine.fleet import LocalFleet, sweep
from tests.benchmarks.document import document
from tests.benchmarks.vm.cases import CASES, CONTESTANTS, Contestant
from tests.benchmarks.vm.droveway import DrovewayEngine, local_fleet
from tests.benchmarks.vm.engine import Engine
from tests.benchmarks.vm.measure import measure
from tests.benchmarks.vm.processor import adopt_orphans
from tests.benchmarks.vm.qemu import QemuEngine
from tests.benchmarks.vm.report import bars, broken, order, table
from workers.guests.qemu.guest import BINARY

RESULTS = Path(__file__).resolve().parent.parent / "results" / "vm.json"


def main() -> int:
    """Run and report; see --help for what the exit code says."""
    arguments = _arguments()
    if arguments.readme:
        print(table(json.loads(RESULTS.read_text())))
        return 0
    if os.geteuid():
        print("writes of a virtual machine can only be followed by root; nothing was measured", file=sys.stderr)
        return 1
    try:
        with ending_on_sigterm():
            results = _measure(arguments.rounds)
    except (DrovewayError, RuntimeError, OSError) as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; nothing was kept", file=sys.stderr)
        return 130
    arguments.output.write_text(document(results))
    print(table(results), end="\n\n")
    for bar in bars(results):
        print(bar)
    return 0


def _measure(rounds: int) -> dict[str, Any]:
    adopt_orphans()
    sweep()
    found: list[dict[str, Any]] = []
    total = rounds * len(CASES) * len(CONTESTANTS)
    with local_fleet() as fleet:
        bell_for(fleet.settings)  # imports Celery, once: half a second that is no part of any move
        for number in range(1, rounds + 1):
            for case, contestant in order(number):
                name = f"vm{len(found)}"
                run = measure(_engine(fleet, name, contestant), name, CASES[case])
                found.append({"case": case, "contestant": contestant.name, "round": number} | run)
                _progress(total, found)
                if contestant.program == "droveway" and broken(run):
                    raise RuntimeError(f"the guest did not survive its move: {json.dumps(run)}")
    return {"machine": _machine(), "date": datetime.datetime.now(datetime.UTC).date().isoformat(), "runs": found}


def _engine(fleet: LocalFleet, name: str, contestant: Contestant) -> Engine:
    if contestant.program == "qemu":
        return QemuEngine(fleet.directory, fleet.hosts["alpha"].settings.host.ram_dir)
    return DrovewayEngine(fleet, name, verified=contestant.verified)


def _machine() -> dict[str, Any]:
    said = subprocess.run([BINARY, "--version"], capture_output=True, text=True, check=True).stdout
    return {"cpus": os.cpu_count(), "kernel": platform.release(), "qemu": said.split()[3]}


def _progress(total: int, found: list[dict[str, Any]]) -> None:
    run = found[-1]
    took = run.get("not_moved") or f"{run['total']:.2f} s, felt {(run['felt'] or 0) * 1e3:.0f} ms"
    harm = ", and the guest did not survive" if broken(run) else ""
    head = f"[{len(found)}/{total}] round {run['round']}, {run['case']}, {run['contestant']}"
    print(f"{head}: {took}{harm} (load {run['host_load']})", file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.vm",
        description="Moves a virtual machine of 2 GiB, idle and writing 500 MB/s, once by QEMU's own migration over "
        "TCP with multifd and once by two hosts' Droveway workers, in turn. Writes JSON, prints the README's table and "
        "one line for each bar. A bar that is short is a result: the exit code is 0. It is 1 when something failed to "
        "run, or a guest that Droveway moved did not arrive whole, and then nothing is written.",
        epilog="Takes 20 minutes on two quiet cores, 4 with --quick, and 4 GiB of memory. Whoever else uses the cores "
        "shows as `load`. The guest is emulated: QEMU may then lose a write of a guest whose processor it shares with "
        "its migration, and the guest does not survive; the table says how often.",
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="moves of each kind (5)")
    parser.add_argument("--quick", action="store_true", help="one move of each kind")
    parser.add_argument("--output", type=Path, default=RESULTS, help="where the JSON goes (default: the results kept)")
    parser.add_argument("--readme", action="store_true", help="print the table of the results kept, and run nothing")
    arguments = parser.parse_args()
    arguments.rounds = arguments.rounds or (1 if arguments.quick else 5)
    return arguments


if __name__ == "__main__":
    sys.exit(main())
