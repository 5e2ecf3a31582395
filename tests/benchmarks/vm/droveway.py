"""The product: two hosts' workers, a real Redis, and one `droveway migrate` from its request to its settled record."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from config.settings import RedisSettings
from tasks.cli.following import follow
from tasks.cli.guest import announce
from tasks.cli.invocation import bell_for
from tasks.cli.migrate import begin, request_for
from tasks.cli.rendering.facts import Facts
from tasks.ledger.ledger import Ledger
from tasks.one_machine.fleet import LocalFleet, fresh_directory
from tasks.one_machine.redis_server import OwnRedis
from tests.benchmarks.vm.cases import CHANNELS, DOWNTIME_LIMIT, MEMORY, PATIENCE
from tests.benchmarks.vm.engine import NotMovedError, Outcome, Place
from tests.benchmarks.vm.processor import bury
from workers.guests.qemu.guest import QemuGuest
from workers.guests.qemu.spec import QemuGuestSpec

_ROOT = Path(__file__).resolve().parents[3]
_SOURCE, _DESTINATION = "alpha", "beta"


@contextmanager
def local_fleet() -> Iterator[LocalFleet]:
    """Two hosts whose workers are up, and nothing left of them."""
    directory = fresh_directory()
    try:
        with closing(OwnRedis(directory)) as redis:
            settings = RedisSettings.model_validate({"url": redis.url})
            environment = _byte_code(directory)
            with LocalFleet(settings, directory=directory, ram_bytes=2 * MEMORY, environment=environment) as fleet:
                fleet.start()
                yield fleet
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _byte_code(directory: Path) -> dict[str, str]:
    """What lets movers find themselves compiled, as on any host, even where Python is told to keep no byte code.

    Compiling anew doubles the 0.45 s of processor time that a mover takes to start.
    """
    environment = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(directory / "byte-code")}
    subprocess.run([sys.executable, "-c", "import workers.mover"], env=os.environ | environment, cwd=_ROOT, check=True)
    return environment


class DrovewayEngine:
    """From alpha to beta, over `tcp`."""

    def __init__(self, fleet: LocalFleet, name: str, *, verified: bool) -> None:
        """`name`: the guest's, another one for each engine."""
        self._fleet = fleet
        self._name = name
        self._verified = verified
        self._pids: set[int] = set()

    @property
    def consoles(self) -> Sequence[Path]:
        hosts = (self._fleet.hosts[name] for name in (_SOURCE, _DESTINATION))
        return [host.settings.host.state_dir.resolve() / "guests" / self._name / "console" for host in hosts]

    def start(self, spec: QemuGuestSpec) -> Place:
        host = self._fleet.hosts[_SOURCE]
        guest = host.guests.start_qemu(spec)
        with closing(Ledger(self._fleet.settings)) as ledger:
            announce(ledger, host.settings, guest)
        return self._place(guest)

    def move(self) -> Outcome:
        asked = (f"verify-ram={'on' if self._verified else 'off'}",)
        seconds = f"completion-timeout-per-gib={PATIENCE * (1 << 30) // MEMORY}s"
        chosen = ("transport=tcp", f"channels={CHANNELS}", f"downtime-limit={DOWNTIME_LIMIT}ms", seconds)
        with closing(Ledger(self._fleet.settings)) as ledger:
            request = request_for(self._name, _DESTINATION, asked, chosen)
            begin(ledger, bell_for(self._fleet.settings), request)
            record = follow(ledger, request.migration, None)
        if record.state != "completed":
            if record.reason == "stalled":
                raise NotMovedError(record.message)
            raise RuntimeError(f"the move {record.state}: {record.message}")
        facts = Facts.of(record)
        sides = {name: dict((side.progress or {}).get("seconds", {})) for name, side in facts.sides()}
        moments = {"created": record.created, "admitted": record.admitted, "finished": record.finished}
        moments |= {f"claimed:{name}": side.claimed for name, side in facts.sides()}
        rounds = [{key: each[key] for key in ("kind", "sent", "seconds")} for each in facts.to_json()["rounds"]]
        spans = sides | {"moments": moments, "rounds": rounds, "tracker": facts.choices.get("tracker")}
        moving = facts.seconds["total"] - facts.seconds["pairing"]
        return Outcome(moving, facts.seconds["downtime"], facts.transferred, len(facts.finished), spans)

    def destination(self) -> Place:
        guest = self._fleet.hosts[_DESTINATION].guests.open(self._name)
        assert isinstance(guest, QemuGuest)
        return self._place(guest)

    def end(self) -> None:
        for host in self._fleet.hosts.values():
            if host.guests.holds(self._name):
                host.guests.stop(self._name)
        for pid in self._pids:
            bury(pid)

    def logs(self) -> str:
        """The ends of all that the fleet wrote for people."""
        return "\n---\n".join(log.read_text("utf-8", "replace")[-3000:] for log in self._fleet.logs())

    def _place(self, guest: QemuGuest) -> Place:
        self._pids.add(guest.pid)
        return Place(guest.pid, guest.places.status)
