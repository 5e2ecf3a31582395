"""Two hosts with real workers on this machine, and virtual machines that go to and fro between them."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any

from config.settings import RedisSettings
from tasks.app import bell_for
from tasks.cli.following import follow
from tasks.cli.guest import announce
from tasks.cli.migrate import begin, request_for
from tasks.ledger.ledger import Ledger
from tasks.one_machine.fleet import LocalFleet
from tasks.records import MigrationRecord
from tests.redis_server import RedisServer
from tests.until import until
from tests.vm.machine import await_ticks, vm_spec
from workers.guests.qemu.guest import QemuGuest

_RAM = 1 << 30
_BOOT_SECONDS = 90.0  # 2 on an idle core
_names = (f"vm{number}" for number in itertools.count(1))


class VmFleet:
    """Two hosts, and one guest at a time."""

    def __init__(self, redis: RedisServer, environment: Mapping[str, str]) -> None:
        settings = RedisSettings.model_validate({"url": redis.url})
        self.fleet = LocalFleet(settings, ram_bytes=_RAM, environment=environment)
        self.ways = itertools.cycle([("alpha", "beta"), ("beta", "alpha")])

    def start(self, **shape: Any) -> QemuGuest:
        """On the first host, up and working.

        QEMU 7.2's emulation of two processors can keep a breakpoint that the guest's kernel, patching itself, has taken
        back: both trap in it for ever, RIP at the entry of int3 and no breakpoint in memory. Another one is started.
        """
        guest = self._boot(shape)
        if guest.spec.vcpus > 1 and not self._speaks(guest):
            print(f"{guest.name} hangs in its boot; another is started", file=sys.stderr)
            self.end()
            guest = self._boot(shape)
        await_ticks(guest, 5)
        return guest

    def _boot(self, shape: Mapping[str, Any]) -> QemuGuest:
        guest = self.fleet.hosts["alpha"].guests.start_qemu(vm_spec(next(_names), **shape))
        self.ways = itertools.cycle([("alpha", "beta"), ("beta", "alpha")])
        with closing(Ledger(self.fleet.settings)) as ledger:
            announce(ledger, self.fleet.hosts["alpha"].settings, guest)
        return guest

    def _speaks(self, guest: QemuGuest) -> bool:
        try:
            await_ticks(guest, 1, _BOOT_SECONDS)
        except AssertionError:
            return False
        return True

    def move(
        self,
        name: str,
        capabilities: tuple[str, ...] = ("verify-ram=on",),
        parameters: tuple[str, ...] = (),
        meanwhile: Callable[[], None] = lambda: None,
    ) -> tuple[MigrationRecord, str]:
        """To the other host, over `tcp` unless told otherwise; how it ended, and where the guest should be by then.

        `meanwhile` is called once there is a twin: both hosts have looked, and found nothing against it.
        """
        _, destination = next(self.ways)
        with closing(Ledger(self.fleet.settings)) as ledger:
            request = request_for(name, destination, capabilities, parameters or ("transport=tcp",))
            begin(ledger, bell_for(self.fleet.settings), request)
            until("the twin, or the end", lambda: self._twin_or_end(ledger, request.migration, name, destination), 60)
            meanwhile()
            return follow(ledger, request.migration, None), destination

    def _twin_or_end(self, ledger: Ledger, migration: str, name: str, destination: str) -> bool:
        record = ledger.find(migration)
        return self.fleet.hosts[destination].guests.holds(name) or (record is not None and record.ended)

    def guest(self, host: str, name: str) -> QemuGuest:
        found = self.fleet.hosts[host].guests.open(name)
        assert isinstance(found, QemuGuest)
        return found

    def end(self) -> None:
        for host in self.fleet.hosts.values():
            for left in host.guests.list():
                host.guests.stop(left.name)
