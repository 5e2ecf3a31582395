"""`make bench-executor`: what an evacuation at the size of a cloud costs the record. Real Redis, scripts and steps.

Movers are simulated: in each round every move that was admitted is claimed by both sides and ends well. What real
movers add, a renewed lease for each side and second, is not counted.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import redis

from config.settings import RedisSettings, Settings, WorkerSettings
from tasks.evacuate import begin
from tasks.ledger.ledger import Ledger
from tasks.planning.evacuating import Evacuation
from tasks.planning.job import State
from tasks.records import LocalGuest, MigrationRecord
from tasks.steps import snapshot, take_step
from tests.benchmarks.rdma.report import Bar
from tests.integration.console import GIB, OFFERED
from tests.redis_server import RedisServer
from workers.attempt import Job, Status
from workers.pairing.contract import Side

_JOB = "e-bench"
_GUESTS = 20
#: A move needs five by itself: submit, two claims, two ends. What admits and notes is shared, in a small fleet by few.
_MOST_SCRIPTS = 8.0


class _Deaf:
    """Nobody hears the bell: the movers are simulated."""

    def ring(self, record: MigrationRecord, side: Side) -> None: ...

    def reconcile(self, host: str) -> None: ...


@dataclass
class Seen:
    """What is looked at after each round."""

    over_limit: int = 0
    #: Moves that ended, by source.
    ended: Counter[str] = field(default_factory=Counter)
    #: The most by which one source, not yet empty, was ahead of another.
    ahead: int = 0
    peak_bytes: int = 0
    steps: list[float] = field(default_factory=list)


def main() -> int:
    """Run and report; exit code 1 when a bar is short."""
    arguments = _arguments()
    server = RedisServer()
    try:
        server.start()
        url = RedisSettings.model_validate({"url": server.url})
        settings = Settings(redis=url, worker=WorkerSettings(lease=3600))
        with closing(Ledger(settings)) as ledger, server.client() as client:
            found = _measured(ledger, client, arguments.hosts, arguments.evacuated)
    finally:
        server.close()
    print(json.dumps(found, indent=1))
    bars = [Bar(f"executor-{name}", found[name], most) for name, most in _BARS.items()]
    print(*bars, sep="\n")
    return 0 if all(bar.met for bar in bars) else 1


_BARS = {"over_limit": 0, "left": 0, "scripts_per_move": _MOST_SCRIPTS, "most_ahead": 1}


def _measured(ledger: Ledger, client: redis.Redis, hosts: int, evacuated: int) -> dict[str, Any]:
    offered = OFFERED | {"memory": str(64 * GIB)}
    for host in range(hosts):
        guests = [LocalGuest(f"g{host}-{number}", GIB, 0) for number in range(_GUESTS)]
        for side in Side:
            ledger.heartbeat(f"h{host}", side, offered, [], guests)
    sources = [f"h{host}" for host in range(0, hosts, hosts // evacuated)][:evacuated]
    idle, scripts = _used(client), _scripts(client)
    began, seen = time.perf_counter(), Seen()
    begin(ledger, Evacuation(_JOB, frozenset(sources)), "benchmark")
    while not snapshot(ledger, _JOB).ended:
        _round(ledger, client, sources, seen)
    seconds, record, moves = time.perf_counter() - began, snapshot(ledger, _JOB), sum(seen.ended.values())
    fleet = ledger.fleet()
    return {
        "hosts": hosts,
        "guests": hosts * _GUESTS,
        "evacuated": evacuated,
        "moves": moves,
        "left": sum(guest.host in sources for guest in fleet.guests.values()) + (record.state is not State.COMPLETED),
        "seconds": seconds,
        "moves_per_second": moves / seconds,
        "step_seconds_longest": max(seen.steps),
        "steps": len(seen.steps),
        "scripts_per_move": (_scripts(client) - scripts) / moves,
        "redis_mib_idle": idle / (1 << 20),
        "redis_mib_peak": seen.peak_bytes / (1 << 20),
        "over_limit": seen.over_limit,
        "most_ahead": seen.ahead,
    }


def _round(ledger: Ledger, client: redis.Redis, sources: list[str], seen: Seen) -> None:
    client.delete(f"droveway:job:{_JOB}:turn")  # the time between two steps is not what is measured
    began = time.perf_counter()
    take_step(ledger, _Deaf(), _JOB)
    seen.steps.append(time.perf_counter() - began)
    hosts = ledger.fleet().hosts.values()
    seen.over_limit += sum(host.free < 0 or any(host.busy[side] > host.slots[side] for side in Side) for host in hosts)
    seen.peak_bytes = max(seen.peak_bytes, _used(client))
    for record in ledger.open():
        if record.epoch is not None and not record.ended:
            _end(ledger, record)
            seen.ended[record.source.host] += 1
    ledger.admit()
    waiting = [seen.ended[host] for host in sources if seen.ended[host] < _GUESTS]
    seen.ahead = max(seen.ahead, max(waiting) - min(waiting) if waiting else 0)


def _end(ledger: Ledger, record: MigrationRecord) -> None:
    assert record.epoch is not None
    made = record.guest, record.epoch
    ends = ((side, record.side(side).host, record.side(side.peer).host) for side in Side)
    jobs = [Job(record.migration, *made, side, "n", host, peer, GIB, {}, {}) for side, host, peer in ends]
    for job in jobs:
        ledger.claim(job.ticket)
    for job in jobs:
        ledger.finish(job.ticket, Status(outcome="completed"))


def _used(client: redis.Redis) -> int:
    return int(client.info("memory")["used_memory"])


def _scripts(client: redis.Redis) -> int:
    return int(client.info("commandstats").get("cmdstat_evalsha", {"calls": 0})["calls"])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.executor", description=__doc__)
    parser.add_argument("--hosts", type=int, default=1000, help="twenty guests each (default: 1000)")
    parser.add_argument("--evacuated", type=int, default=50, help="hosts that are emptied (default: 50)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
