"""Many moves of virtual machines of every kind, and what was found: `python -m tests.vm.series`.

Without the drain, and with a disk that answers late, it is the control: memory must then be found corrupt.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.redis_server import RedisServer
from tests.vm.fleet import VmFleet
from tests.vm.slow_disk import MANY_ROUNDS, slow_reads
from tests.vm.working_machine import Case, Findings, working_machine

_DISKS = (("none", "threads"), ("none", "native"), ("none", "io_uring"), ("writeback", "threads"))
CASES = (
    *(Case(f"idle, {vcpus} vCPU", vcpus, rate=0) for vcpus in (1, 2)),
    *(Case(f"dirtying 100 MiB/s, {vcpus} vCPU", vcpus, rate=100) for vcpus in (1, 2)),
    *(
        Case(f"virtio-blk {cache}/{aio}, {vcpus} vCPU", vcpus, disk={"cache": cache, "aio": aio})
        for vcpus, (cache, aio) in zip((1, 2, 2, 1), _DISKS, strict=True)
    ),
    Case("virtio-net, 1 vCPU", net=True),
    Case("balloon, 1 vCPU", balloon=True),
    Case(
        "all of them, dirtying 50 MiB/s, 2 vCPU",
        2,
        50,
        disk={"cache": "none", "aio": "native"},
        how="cached",
        net=True,
        balloon=True,
    ),
)
SLOW_CASES = tuple(
    Case(f"{aio}, 1 vCPU", rate=0, disk={"cache": "none", "aio": aio}) for aio in ("native", "threads", "io_uring")
)


def main() -> int:
    """Run the cases; 0 if all were clean, or, without the drain, if a corruption was seen."""
    asked = _arguments()
    chosen = [case for case in (SLOW_CASES if asked.slow else CASES) if asked.case in case.name]
    found: dict[str, Findings] = {}
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="droveway-series-")))
        vms = stack.enter_context(_fleet({"DROVEWAY_FAULT": "no-drain"} if asked.without_drain else {}))
        for case in chosen:
            found[case.name] = _run(vms, case, asked, directory)
    print(json.dumps([_row(name, each) for name, each in found.items()], indent=2) if asked.json else _table(found))
    clean = all(each.clean for each in found.values())
    return int(clean if asked.without_drain else not clean)


def _run(vms: VmFleet, case: Case, asked: argparse.Namespace, directory: Path) -> Findings:
    with ExitStack() as stack:
        slow = stack.enter_context(slow_reads(directory, asked.slow << 20)) if asked.slow else None
        machine = stack.enter_context(working_machine(vms, case, directory))
        for number in range(asked.moves):
            if slow:
                slow.hold(machine.guest.pid)
            # verify-ram may see the corruption first, and refuse the move.
            verify = f"verify-ram={'off' if asked.without_drain else 'on'}"
            move = machine.move(capabilities=(verify,), parameters=MANY_ROUNDS if slow else ())
            said = (
                f"downtime {move.downtime * 1e3:.0f} ms, {move.total:.2f} s, {move.rounds} rounds, {move.bad} bad pages"
            )
            print(f"{case.name}: {number + 1} of {asked.moves}: {said}", file=sys.stderr, flush=True)
        return machine.end()


@contextmanager
def _fleet(environment: dict[str, str]) -> Iterator[VmFleet]:
    server = RedisServer()
    with ExitStack() as stack:
        stack.callback(server.close)
        server.start()
        vms = VmFleet(server, environment)
        stack.enter_context(vms.fleet)
        vms.fleet.start()
        stack.callback(vms.end)
        yield vms


def _row(name: str, found: Findings) -> dict[str, object]:
    """One case's line, times in seconds."""
    downtimes = [move.downtime for move in found.moves]
    return {
        "case": name,
        "moves": len(found.moves),
        "moves that corrupted": sum(bool(move.bad) for move in found.moves),
        "corrupt pages": found.bad_pages,
        "bad blocks": found.bad_blocks,
        "blocks read": found.reads,
        "blocks written": found.writes,
        "pings answered": found.pongs,
        "pings lost": found.lost_pings,
        "counters unbroken": found.unbroken,
        "downtime, median": statistics.median(downtimes),
        "downtime, worst": max(downtimes),
        "total, median": statistics.median(move.total for move in found.moves),
    }


def _table(found: dict[str, Findings]) -> str:
    rows = [_row(name, each) for name, each in found.items()]
    lines = [list(rows[0]), ["---"] * len(rows[0])]
    lines += [[_shown(value) for value in row.values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return f"{value * 1e3:.0f} ms" if isinstance(value, float) else str(value)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.vm.series", description=__doc__)
    parser.add_argument("--moves", type=int, default=10, help="of each case (default: 10)")
    parser.add_argument("--case", default="", metavar="WORDS", help="only cases whose name has these words in it")
    parser.add_argument("--slow", type=int, default=0, metavar="MIB", help="cases with a disk read at so many MiB/s")
    parser.add_argument("--without-drain", action="store_true", help="the control: do not wait for the disk")
    parser.add_argument("--json", action="store_true", help="times in seconds")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # everything of it was ended and removed on the way here
        sys.exit(130)
