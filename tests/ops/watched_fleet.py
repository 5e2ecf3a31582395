"""Three hosts' real workers and the fleet's exporter, watched by a real Prometheus while guests move for real.

What happens, so that every panel has something to show: guests move, one move gives up, a host is emptied though one
of its guests is pinned.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config.settings import RedisSettings
from tasks.app import bell_for
from tasks.cli.guest import announce
from tasks.evacuate import begin
from tasks.ledger.ledger import Ledger
from tasks.messages import MigrateRequest, new_migration_id
from tasks.one_machine.fleet import LocalFleet
from tasks.one_machine.tied import tied_to_us
from tasks.planning.evacuating import Evacuation
from tasks.records import Kept, MigrationRecord
from tasks.requests import admit, submit, watch
from tasks.steps import snapshot
from tests.ops.ports import free_port
from tests.ops.prometheus_server import PrometheusServer
from tests.redis_server import RedisServer
from tests.until import until
from workers.guests.memory_spec import MemoryGuestSpec
from workers.pairing.contract import Side

ROOT = Path(__file__).parents[2]
MIB = 1 << 20
HOSTS = ("alpha", "beta", "gamma")
EVACUATION = "e-watched"


@dataclass(frozen=True)
class Watched:
    """What Prometheus saw, and when it began."""

    prometheus: PrometheusServer
    fleet: LocalFleet
    began: float

    def over(self, expression: str) -> list[dict[str, Any]]:
        """The series that had a number at any time since."""
        return self.prometheus.over(expression, self.began, time.time())

    def every(self, expression: str) -> list[dict[str, Any]]:
        """The series that there were at any time since, with a number or not."""
        return self.prometheus.every(expression, self.began, time.time())


@contextmanager
def watched() -> Iterator[Watched]:
    """All of it, after everything has happened; nothing is left afterwards."""
    redis = RedisServer()
    prometheus = None
    try:
        redis.start()
        settings = RedisSettings.model_validate({"url": redis.url})
        quick = {"worker.lease": 4, "worker.reconcile_interval": 1, "worker.poll_interval": 0.2, "host.memory": "1G"}
        quick["exporter.interval"] = 0.5
        with LocalFleet(settings, HOSTS, ram_bytes=512 * MIB, overrides=quick) as fleet:
            ports = {name: _with_metrics(fleet, name) for name in HOSTS}
            at = free_port()
            prometheus = PrometheusServer(ports, at)
            fleet.start()
            with _exporter(fleet, at):
                prometheus.start()
                began = time.time()
                _until_scraped(prometheus, len(HOSTS) * len(Side) + 1)
                _happen(fleet)
                time.sleep(3)  # the last of it is scraped, and the rules look at it
                yield Watched(prometheus, fleet, began)
    finally:
        if prometheus is not None:
            prometheus.close()
        redis.close()


def _with_metrics(fleet: LocalFleet, name: str) -> list[int]:
    """Give both workers of a host a port for /metrics."""
    host = fleet.hosts[name]
    ports = [free_port(), free_port()]
    pages = dict(zip(("metrics_source_port", "metrics_destination_port"), ports, strict=True))
    host.settings = host.settings.model_copy(update={"host": host.settings.host.model_copy(update=pages)})
    return ports


@contextmanager
def _exporter(fleet: LocalFleet, port: int) -> Iterator[None]:
    """`droveway exporter`, as an operator runs it."""
    command = [sys.executable, "-m", "tasks.cli.main", "exporter", "--port", str(port)]
    with (fleet.directory / "exporter.log").open("ab") as log:
        process = subprocess.Popen(
            tied_to_us(command),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=ROOT,
            env=os.environ | fleet.settings.environment(),
        )
    try:
        yield
    finally:
        process.terminate()
        process.wait(timeout=30)


def _until_scraped(prometheus: PrometheusServer, pages: int) -> None:
    counted = f'count(up{{job=~"droveway-.*"}} == 1) == {pages}'
    until("a scrape of every page", lambda: prometheus.now(counted), seconds=60.0, every=0.3)


def _happen(fleet: LocalFleet) -> None:
    with closing(Ledger(fleet.settings)) as ledger:
        assert _moved(fleet, ledger, "calm", "alpha", "beta").state == "completed"
        assert _moved(fleet, ledger, "locked", "alpha", "beta", memory=4 * MIB, pin_all=True).state == "completed"
        assert _moved(fleet, ledger, "busy", "alpha", "beta", dirty_rate=60 * MIB).state == "completed"
        hopeless = {"downtime-limit": 10, "max-rounds": 2, "on-stall": "give-up"}
        assert _moved(fleet, ledger, "wild", "beta", "gamma", dirty_rate=400 * MIB, **hopeless).reason == "stalled"
        _emptied(fleet, ledger)


def _moved(
    fleet: LocalFleet,
    ledger: Ledger,
    name: str,
    source: str,
    destination: str,
    dirty_rate: int = 0,
    memory: int = 64 * MIB,
    *,
    pin_all: bool = False,
    **parameters: object,
) -> MigrationRecord:
    """A new guest that is moved once; the record of that."""
    _guest(fleet, ledger, name, source, memory, dirty_rate)
    asked = MigrateRequest(
        migration=new_migration_id(),
        guest=name,
        destination=destination,
        capabilities={"rdma-pin-all": pin_all},
        parameters=parameters,  # type: ignore[arg-type]
    )
    submit(ledger, asked)
    admit(ledger, bell_for(fleet.settings))
    *_, record = watch(ledger, asked.migration)
    return record


def _guest(fleet: LocalFleet, ledger: Ledger, name: str, host: str, memory: int, dirty_rate: int = 0) -> None:
    started = fleet.hosts[host].guests.start(MemoryGuestSpec(name, memory, dirty_rate))
    started.wait_filled(30)
    announce(ledger, fleet.hosts[host].settings, started)


def _emptied(fleet: LocalFleet, ledger: Ledger) -> None:
    """An evacuation of alpha, which cannot move one of the guests there."""
    for number in range(6):
        _guest(fleet, ledger, f"a{number}", "alpha", 24 * MIB, 2 * MIB)
    ledger.pin(Kept.GUEST, "a0", "licence is bound to the host")
    asked = Evacuation(EVACUATION, frozenset({"alpha"}), deadline=ledger.now() + 3600)
    begin(ledger, asked, "a new board")
    ended = until("the evacuation's end", lambda: _ended(ledger), seconds=300.0, every=0.3)
    assert ended == "partial", ended


def _ended(ledger: Ledger) -> str | None:
    record = snapshot(ledger, EVACUATION)
    return str(record.state) if record.ended else None
