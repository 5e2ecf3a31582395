"""`make bench-rdma`: QEMU's RDMA migration and ours, side by side in one lab machine."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks.document import document
from tests.benchmarks.rdma.contestants import CONTESTANTS, WATCHED
from tests.benchmarks.rdma.posting import fill_cost
from tests.benchmarks.rdma.report import Results, bars, table
from tests.lab.machine import Machine, MachineError, Running, why_no_lab

RESULTS = Path(__file__).resolve().parent.parent / "results" / "rdma.json"
_SILENCE = 900.0  # seconds; no single measurement takes so long, however busy the host is


def main() -> int:
    """Run and report; see --help for what the exit code says."""
    arguments = _arguments()
    if arguments.readme:
        print(table(json.loads(RESULTS.read_text())))
        return 0
    if reason := why_no_lab():
        print(f"{reason}; nothing was measured", file=sys.stderr)
        return 1
    try:
        results = _measure(arguments.rounds, arguments.moves, arguments.cpus)
    except (MachineError, TimeoutError, RuntimeError) as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; nothing was kept", file=sys.stderr)
        return 130
    arguments.output.write_text(document(results))
    if results["runs"]:
        print(table(results), end="\n\n")
    for bar in bars(results):
        print(bar)
    return 0


def _measure(rounds: int, moves: int, cpus: int) -> Results:
    results: dict[str, Any] = {"runs": [], "pinned": {}, "moves": []}
    total = 2 + ((rounds + 1) * len(CONTESTANTS) + len(WATCHED)) * bool(rounds) + 2 * moves
    with Machine("bench", cpus=cpus) as machine:
        machine.network("loopback")
        command = [sys.executable, "-m", "tests.benchmarks.rdma.inside", "--rounds", str(rounds), "--moves", str(moves)]
        running = machine.start(command, env={"OPENBLAS_NUM_THREADS": "1"})
        for number, said in enumerate(_said(machine, running), 1):
            load = round(os.getloadavg()[0], 1)
            match said.pop("kind"):
                case "run":
                    results["runs"].append(said | {"host_load": load})
                case "move":
                    results["moves"].append(said | {"host_load": load})
                case "pinned":
                    results["pinned"][said["contestant"]] = said["series"]
                case part:
                    results[part] = said
            _progress(number, total, said, load)
    results["posting"]["native"] = fill_cost()
    results["date"] = datetime.datetime.now(datetime.UTC).date().isoformat()
    print(file=sys.stderr)
    return results


def _said(machine: Machine, running: Running) -> Iterator[dict[str, Any]]:
    """The measurements as they come. RuntimeError when the program in the machine fails."""
    read, silent = 0, 0.0
    while True:
        ended = running.poll()
        *lines, _ = running.stdout[read:].split("\n")
        for line in lines:
            read += len(line) + 1
            yield json.loads(line)
        if ended is not None:
            break
        silent = 0.0 if lines else silent + 0.5
        if silent > _SILENCE:
            raise TimeoutError(f"nothing was measured for {_SILENCE:g} s\n{running.report()}")
        try:
            machine.await_that(lambda: running.poll() is not None, 0.5)
        except TimeoutError:
            continue
    if ended:
        raise RuntimeError(f"the benchmark failed in the machine:\n{running.stderr}")


def _progress(number: int, total: int, said: dict[str, Any], load: float) -> None:
    """One line, rewritten on a terminal."""
    name = said.get("contestant") or said.get("way") or "set-up"
    if "round" in said:
        name += f", round {said['round']}" if said["round"] else ", warm-up"
    took = said.get("seconds", said.get("downtime"))
    line = f"[{number}/{total}] {name}" + (f": {took:.2f} s" if took is not None else "") + f" (host load {load})"
    terminal = sys.stderr.isatty()
    print(f"\r\x1b[K{line}" if terminal else line, end="" if terminal else "\n", file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.rdma",
        description="Moves 256 MiB of random memory by QEMU's own migration and by Droveway, over RDMA and TCP, in one "
        "emulated machine, interleaved; then a guest that writes, to and fro between two hosts' workers. Writes JSON, "
        "prints the README's table, and one line for each bar. A bar that is short is a result: the exit code is 0. It "
        "is 1 when something failed to run, or memory arrived corrupt, and then nothing is written.",
        epilog="Takes 25 minutes on two quiet cores, 8 with --quick. Whoever else uses them shows as `host load`.",
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds that count, after one that does not (5)")
    parser.add_argument("--moves", type=int, metavar="N", help="moves each, rdma-pin-all off and on (10)")
    parser.add_argument("--quick", action="store_true", help="2 rounds and 3 moves each")
    parser.add_argument("--cpus", type=int, default=2, help="virtual processors, the same for all (default: 2)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="where the JSON goes (default: the results kept)")
    parser.add_argument("--readme", action="store_true", help="print the table of the results kept, and run nothing")
    arguments = parser.parse_args()
    rounds, moves = (2, 3) if arguments.quick else (5, 10)
    arguments.rounds = rounds if arguments.rounds is None else arguments.rounds
    arguments.moves = moves if arguments.moves is None else arguments.moves
    return arguments


if __name__ == "__main__":
    sys.exit(main())
