"""Two hosts' real workers on one machine, a guest between them, and hands to harm any of it at a known step."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import time
from collections.abc import Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from config.errors import DrovewayError, RefusedError, UnreachableError
from config.settings import RedisSettings
from tasks.app import bell_for
from tasks.cli.guest import announce
from tasks.ledger.ledger import Ledger
from tasks.messages import MigrateRequest, new_migration_id
from tasks.one_machine.fleet import LocalFleet
from tasks.one_machine.host import LocalHost
from tasks.reconcile import reconcile
from tasks.records import Kept, MigrationRecord
from tasks.requests import admit, cancel, submit
from tests.redis_server import RedisServer
from tests.until import until as wait_until
from workers.attempt import Attempt
from workers.guests.contract import Guest, RunState
from workers.guests.memory import MemoryGuest
from workers.guests.memory_spec import MemoryGuestSpec
from workers.guests.qemu.guest import QemuGuest
from workers.pairing.contract import Side

#: Seconds in which anything that is going to happen has happened, on a machine that does other things as well.
PATIENCE = 90.0
MEMORY = 32 << 20
DIRTY_RATE = 20 << 20
#: A limit below what a switch-over costs beside its bytes: never met, however fast the machine, as long as the guest
#: writes. So there are dirty rounds in every case, and an end to them.
SEVERAL_ROUNDS = {"downtime-limit": 10, "max-rounds": 4, "on-stall": "force"}

_names = (f"g{number}" for number in itertools.count(1))

until = partial(wait_until, seconds=PATIENCE)


class HarmedFleet:
    """The fleet, its Redis, and the hands."""

    def __init__(self) -> None:
        self.redis = RedisServer()
        self.redis.start()
        settings = RedisSettings.model_validate({"url": self.redis.url})
        self.fault = self.redis.directory / "fault"
        self.fleet = LocalFleet(
            settings,
            overrides={
                "worker.lease": 2,
                "worker.reconcile_interval": 1,
                "worker.poll_interval": 0.2,
                "worker.pairing_timeout": 30,
            },
            environment={"DROVEWAY_FAULT": f"file={self.fault}"},
        )

    def __enter__(self) -> Self:
        try:
            self.fleet.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.fleet.close()
        self.redis.close()

    @property
    def alpha(self) -> LocalHost:
        return self.fleet.hosts["alpha"]

    @property
    def beta(self) -> LocalHost:
        return self.fleet.hosts["beta"]

    def host_of(self, side: Side) -> LocalHost:
        """Every case moves from alpha to beta."""
        return self.alpha if side is Side.SOURCE else self.beta

    def ledger(self) -> closing[Ledger]:
        return closing(Ledger(self.fleet.settings))

    # --- one case -----------------------------------------------------------------------------------------------------

    def stop_at(self, point: str) -> None:
        """Movers that start from now on stop themselves there."""
        self.fault.write_text(f"stop-at={point}" if point else "")

    def begin(
        self,
        *,
        point: str = "",
        source: str = "alpha",
        destination: str = "beta",
        parameters: Mapping[str, int | str] = SEVERAL_ROUNDS,
        dirty_rate: int = DIRTY_RATE,
        keep_fault: bool = False,
    ) -> tuple[str, str]:
        """A guest at work and its migration, whose movers stop themselves at `point`; (guest, migration)."""
        name = next(_names)
        host = self.host(source)
        guest = self.start_guest(host, name, dirty_rate)
        if not keep_fault:
            self.stop_at(point)
        with self.ledger() as ledger:
            announce(ledger, host.settings, guest)
        return name, self.ask(name, destination, parameters)

    def ask(self, guest: str, destination: str, parameters: Mapping[str, int | str]) -> str:
        """The migration that is begun by this."""
        request = MigrateRequest(
            migration=new_migration_id(), guest=guest, destination=destination, parameters=dict(parameters)
        )
        with self.ledger() as ledger:
            until("a worker that was killed before speaks again", lambda: _submitted(ledger, request))
            admit(ledger, bell_for(self.fleet.settings))
        return request.migration

    def start_guest(self, host: LocalHost, name: str, dirty_rate: int) -> MemoryGuest | QemuGuest:
        """One that has filled its memory and writes to it."""
        guest = host.guests.start(MemoryGuestSpec(name, MEMORY, dirty_rate))
        guest.wait_filled(30)
        return guest

    def cancel(self, migration: str) -> None:
        """As `droveway cancel` does."""
        with self.ledger() as ledger:
            cancel(ledger, bell_for(self.fleet.settings), migration)

    def keep(self, kept: Kept, name: str, reason: str) -> None:
        """As `droveway blocker add` and `cordon` do."""
        with self.ledger() as ledger:
            ledger.pin(kept, name, reason, None)

    def let_all_move(self) -> None:
        """Nothing is kept where it is any more."""
        with self.ledger() as ledger:
            for kept, name in ledger.fleet().pins:
                ledger.unpin(kept, name)

    def held(self, side: Side, migration: str) -> tuple[Attempt, int]:
        """The mover of that side, once it has stopped itself; its attempt and process id."""
        return until(f"the {side} mover's stop", lambda: self._held(side, migration))

    def _held(self, side: Side, migration: str) -> tuple[Attempt, int] | None:
        for host in (self.alpha, self.beta):
            for attempt in host.attempts(side):
                if attempt.job().migration == migration and (pid := _stopped(attempt)):
                    return attempt, pid
        return None

    def mover(self, side: Side, migration: str) -> int:
        """The process of that side's mover."""
        return until(f"a {side} mover", lambda: self._mover(side, migration))

    def _mover(self, side: Side, migration: str) -> int | None:
        for attempt in self.host_of(side).attempts(side):
            if attempt.job().migration == migration:
                return _pid(attempt)
        return None

    def record(self, migration: str) -> MigrationRecord | None:
        with self.ledger() as ledger:
            return ledger.find(migration)

    def settled(self, migration: str) -> MigrationRecord:
        """The record once both sides have let go, with `droveway reconcile` run as often as it takes."""
        return until(f"the end of {migration}", lambda: self._settled(migration))

    def _settled(self, migration: str) -> MigrationRecord | None:
        with contextlib.suppress(DrovewayError), self.ledger() as ledger:
            reconcile(ledger, bell_for(self.fleet.settings))
            record = ledger.find(migration)
            if record is not None and record.settled:
                return record
        time.sleep(0.3)
        return None

    # --- the verdict --------------------------------------------------------------------------------------------------

    def copies(self, guest: str) -> dict[str, Guest]:
        """By host, the copies whose process lives, whether they answer or not."""
        found = {}
        for host in (self.alpha, self.beta):
            for each in host.guests.list():
                if each.name == guest and each.pid is not None:
                    found[host.name] = host.guests.open(guest)
        return found

    def assert_runs_once(self, guest: str, where: str) -> None:
        """One copy, running, there, whole; and the record agrees."""
        copies = self.copies(guest)
        assert set(copies) == {where}, f"the guest has copies on {sorted(copies)}, expected {where}"
        copy = copies[where]
        assert copy.status() is RunState.RUNNING
        self.assert_whole(copy)
        with self.ledger() as ledger:
            until("the record's agreement", lambda: ledger.fleet().guests[guest].host == where)
        self.host(where).guests.stop(guest)

    def assert_whole(self, copy: Guest) -> None:
        """Every page is as the guest left it, and it goes on writing."""
        assert isinstance(copy, MemoryGuest)
        report = copy.query_oracle(full=True)
        assert report["corrupt"] == 0, report
        assert report["full_check"]["pages_checked"] > 0
        before = report["sequence"]
        until("another write by the guest", lambda: copy.query_oracle()["sequence"] > before)

    def host(self, name: str) -> LocalHost:
        return self.fleet.hosts[name]

    def assert_nothing_left(self) -> None:
        """No attempt, no copy, no QEMU, no slot, no reservation; all workers alive."""
        for host in (self.alpha, self.beta):
            until(f"{host.name} to let go of its attempts", lambda host=host: not host.attempts())
            assert [each.name for each in host.guests.list()] == []
            assert all(host.running(side) for side in Side)
            assert list(host.ram_dir.iterdir()) == []
            assert not _machines_in(host.ram_dir), f"QEMU still runs with memory of {host.name}"
        until("all slots to be free", self._all_free)

    def _all_free(self) -> bool:
        with self.ledger() as ledger, contextlib.suppress(UnreachableError):
            hosts = ledger.fleet().hosts.values()
            return len(hosts) == 2 and all(not host.reserved and not any(host.admitted.values()) for host in hosts)
        return False


def _submitted(ledger: Ledger, request: MigrateRequest) -> bool:
    """False while it is refused for want of a worker: one that was started again takes up its attempts first."""
    try:
        submit(ledger, request)
    except RefusedError as refusal:
        if refusal.reason != "no-worker":
            raise
        return False
    return True


def _machines_in(directory: Path) -> list[int]:
    """Processes of QEMU that were told of something in there, also such as no directory knows of."""
    found = []
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            words = each.read_bytes().split(b"\0")
            if b"qemu-system" in words[0] and any(os.fsencode(directory) in word for word in words):
                found.append(int(each.parent.name))
    return found


def _pid(attempt: Attempt) -> int | None:
    with contextlib.suppress(FileNotFoundError):
        return int(json.loads((attempt.directory / "pid").read_text())["pid"])
    return None


def _stopped(attempt: Attempt) -> int | None:
    pid = _pid(attempt)
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        if pid and Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T":
            return pid
    return None


def asked_to_end(pid: int) -> bool:
    """Whether SIGTERM waits for a stopped process to go on."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(("SigPnd:", "ShdPnd:")) and int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1:
            return True
    return False


def let_go_on(pid: int) -> None:
    """Continue a mover that stopped itself."""
    os.kill(pid, signal.SIGCONT)
