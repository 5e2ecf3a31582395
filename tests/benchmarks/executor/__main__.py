"""`make bench-executor`: what evacuations at the size of a cloud cost the record, and how fairly they are served."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import redis

from config.settings import RedisSettings, Settings, WorkerSettings
from tasks.evacuate import begin
from tasks.inventory.simulated import simulate
from tasks.ledger.ledger import Ledger
from tasks.planning.cluster import Cluster
from tasks.planning.evacuating import Evacuation
from tasks.planning.evacuation import plan_evacuation
from tasks.planning.job import State
from tasks.records import MigrationRecord
from tasks.requests import admit
from tasks.steps import snapshot, take_step
from tests.benchmarks.document import document
from tests.benchmarks.executor.cases import CASES, Case
from tests.benchmarks.executor.fleet import SimulatedFleet, over_limit
from tests.benchmarks.rdma.report import Bar
from tests.integration.console import OFFERED
from tests.redis_server import RedisServer
from workers.pairing.contract import Side

RESULTS = Path(__file__).resolve().parent.parent / "results" / "executor.json"
_PREFIX = "droveway:"
#: Simulated seconds between two steps of a job, at most: workers take one a second, this benchmark fewer.
_STEP = 2.0


class _Deaf:
    """Nobody hears the bell: the movers are simulated."""

    def ring(self, record: MigrationRecord, side: Side) -> None: ...

    def reconcile(self, host: str) -> None: ...


def main() -> int:
    """Run and report; exit code 1 when a bar is short."""
    arguments = _arguments()
    runs = [_run(name, CASES[name]) for name in arguments.cases or (["small"] if arguments.quick else CASES)]
    machine = {"cpus": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()}
    results = {"machine": machine, "date": datetime.datetime.now(datetime.UTC).date().isoformat(), "runs": runs}
    if not (arguments.quick or arguments.cases):
        RESULTS.write_text(document(results))
    print(json.dumps(runs, indent=1))
    bars = [Bar(f"{run['case']}-{name}", run[name], most) for run in runs for name, most in CASES[run["case"]].most]
    print(*bars, sep="\n")
    return 0 if all(bar.met for bar in bars) else 1


def _run(name: str, case: Case) -> dict[str, Any]:
    server = RedisServer()
    try:
        server.start()
        url = RedisSettings.model_validate({"url": server.url})
        settings = Settings(redis=url, worker=WorkerSettings(lease=3600))
        with closing(Ledger(settings)) as ledger, server.client() as client:
            return {"case": name, **_Executor(ledger, client, simulate(case.line), case).run()}
    finally:
        server.close()


class _Executor:
    """One case under way, and what is seen of it."""

    def __init__(self, ledger: Ledger, client: redis.Redis, cluster: Cluster, case: Case) -> None:
        self.ledger, self.client, self.cluster = ledger, client, cluster
        names = sorted(cluster.hosts)
        self.sources = names[:: len(names) // case.evacuated][: case.evacuated]
        #: Each job empties its part of the hosts: several operators at once.
        self.jobs = {f"e-{number}": self.sources[number :: case.jobs] for number in range(case.jobs)}
        self.fleet = SimulatedFleet(ledger, cluster)
        self.steps: list[float] = []
        self.exceeded = self.most_ahead = self.peak = 0
        self.admitting = 0.0

    def run(self) -> dict[str, Any]:
        self.fleet.register(OFFERED)
        for name, host in self.cluster.hosts.items():
            assert self.ledger.fleet().hosts[name].memory == host.memory
            break
        idle = self._used()
        plan = plan_evacuation(self.ledger.cluster(), self.sources)
        self.client.config_resetstat()
        began = time.perf_counter()
        for job, hosts in self.jobs.items():
            begin(self.ledger, Evacuation(job, frozenset(hosts)), "benchmark")
        self._until_ended()
        return self._figures(idle, plan.schedule.lower_bound, time.perf_counter() - began)

    def _until_ended(self) -> None:
        stepped = -_STEP
        while not all(snapshot(self.ledger, job).ended for job in self.jobs):
            if self.fleet.now - stepped >= _STEP:
                stepped = self.fleet.now
                self._step()
            self.fleet.take_up()
            if self.fleet.advance(stepped + _STEP):
                began = time.perf_counter()
                admit(self.ledger, _Deaf())
                self.admitting += time.perf_counter() - began
                self._look()

    def _step(self) -> None:
        for job in self.jobs:
            self.client.delete(f"{_PREFIX}job:{job}:turn")  # the time between two steps is not what is measured
            began = time.perf_counter()
            take_step(self.ledger, _Deaf(), job)
            self.steps.append(time.perf_counter() - began)
        self.exceeded += over_limit(self.ledger.fleet(), *self._links())
        self.peak = max(self.peak, self._used())

    def _look(self) -> None:
        """Who is ahead of whom, among sources that still have somebody to send."""
        had = Counter({host: len(self.cluster.residents[host]) for host in self.sources})
        waiting = [self.fleet.ended[host] for host in self.sources if self.fleet.ended[host] < had[host]]
        self.most_ahead = max(self.most_ahead, max(waiting) - min(waiting) if waiting else 0)

    def _links(self) -> tuple[dict[str, int], dict[str, int]]:
        given, carries = {}, {}
        for uplink, rate in self.cluster.uplinks.items():
            for way in ("up", "down"):
                given[f"{uplink}:{way}"] = sum(map(int, self.client.hvals(f"{_PREFIX}link:{uplink}:{way}")))
                carries[f"{uplink}:{way}"] = rate
        return given, carries

    def _figures(self, idle: int, bound: float, seconds: float) -> dict[str, Any]:
        moves, after = sum(self.fleet.ended.values()), self.ledger.fleet()
        left = sum(guest.host in self.sources for guest in after.guests.values())
        incomplete = sum(snapshot(self.ledger, job).state is not State.COMPLETED for job in self.jobs)
        scripts, renewed = self._scripts(), self.fleet.calls["renew"]
        return {
            "hosts": len(self.cluster.hosts),
            "guests": len(self.cluster.guests),
            "evacuated": len(self.sources),
            "jobs": len(self.jobs),
            "moves": moves,
            "left": left + incomplete,
            "over_limit": self.exceeded,
            "scripts_per_move": (scripts - renewed) / moves,
            "renewals_per_move": renewed / moves,
            "moves_per_second": moves / seconds,
            "control_plane_seconds": seconds,
            "admission_milliseconds": 1000 * self.admitting / moves,
            "steps": len(self.steps),
            "step_seconds_longest": max(self.steps),
            "redis_mib_idle": idle / (1 << 20),
            "redis_mib_peak": self.peak / (1 << 20),
            "makespan": self.fleet.now,
            "makespan_by_lower_bound": self.fleet.now / bound,
            "most_ahead": self.most_ahead,
        }

    def _used(self) -> int:
        return int(self.client.info("memory")["used_memory"])

    def _scripts(self) -> int:
        return int(self.client.info("commandstats").get("cmdstat_evalsha", {"calls": 0})["calls"])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.executor",
        description="Empties hosts of simulated fleets by the real steps and scripts on a real Redis; movers and their "
        "clock are simulated. Writes JSON, prints figures and one line for each bar. The exit code is 1 when one is "
        "short.",
        epilog="Takes some minutes, ten seconds with --quick.",
    )
    parser.add_argument("--quick", action="store_true", help="a small fleet only; keep no results")
    parser.add_argument("--case", dest="cases", action="append", choices=CASES, help="this one; keep no results")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
