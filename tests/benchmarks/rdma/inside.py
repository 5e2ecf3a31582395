"""What `make bench-rdma` runs in the lab machine: one line of JSON a measurement, as soon as it is taken."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks.rdma import droveway, qemu
from tests.benchmarks.rdma.contestants import CONTESTANTS, WATCHED, Contestant
from tests.benchmarks.rdma.memory import Pinned, allocated, make_cold, make_guest, same
from tests.benchmarks.rdma.posting import fill_cost, post_cost

_SHM = Path("/dev/shm")
_PROGRAMS = {"qemu": qemu.migrate, "droveway": droveway.migrate}


def main() -> None:
    """Take the measurements that the arguments name."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--moves", type=int, required=True)
    arguments = parser.parse_args()
    _say("machine", **_machine())
    _say("posting", fill=fill_cost(), post=post_cost())
    if arguments.rounds:
        guests = {
            "all": make_guest(_SHM / "all.ram", half=False),
            "half": make_guest(_SHM / "half.ram", half=True),
        }
        for number in range(arguments.rounds + 1):  # round 0 is thrown away: caches are cold
            for how in list(CONTESTANTS.values())[:: 1 if number % 2 else -1]:
                _say("run", contestant=how.name, round=number, seconds=_run(how, guests[how.used], None))
        for name in WATCHED:
            pinned = Pinned()
            _run(CONTESTANTS[name], guests["all"], pinned.look)
            _say("pinned", contestant=name, series=pinned.series)
        for guest in guests.values():
            guest.unlink()
        (_SHM / "cold.ram").unlink()
    if arguments.moves:
        # Here, since Celery and all that comes with it takes half a minute to import on an emulated processor.
        from tests.benchmarks.rdma.downtime import moves

        for move in moves(arguments.moves):
            _say("move", **move)


def _run(how: Contestant, guest: Path, watch: Callable[[int, int], None] | None) -> float:
    """Move the guest to a machine that has none of its memory yet, and compare."""
    there = allocated(guest)
    cold = make_cold(_SHM / "cold.ram")
    seconds = _PROGRAMS[how.program](how, guest, cold, watch)
    if not same(guest, cold):
        raise SystemExit(f"CORRUPT: after {how.name} the destination's memory differs from the source's")
    if allocated(guest) != there:
        raise SystemExit(f"{how.name} touched memory that its guest had not: half is no longer half")
    return seconds


def _machine() -> dict[str, object]:
    qemu_version = subprocess.run(
        ["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=True
    ).stdout
    library = next(Path("/usr/lib").glob("*/libibverbs.so.1.*")).name  # its last numbers are rdma-core's version
    return {
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "qemu": qemu_version.split()[3],
        "rdma-core": ".".join(library.split(".")[-2:]),
        "python": platform.python_version(),
    }


def _say(kind: str, **what: object) -> None:
    print(json.dumps({"kind": kind, **what}), flush=True)


if __name__ == "__main__":
    main()
