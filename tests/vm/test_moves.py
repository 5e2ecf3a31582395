"""Virtual machines moved by real workers between two hosts of one machine, to and fro, while they work."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any

import pytest

from config.settings import RedisSettings
from tasks.app import bell_for
from tasks.cli.following import ending, follow
from tasks.cli.guest import announce
from tasks.cli.migrate import begin, request_for
from tasks.ledger.ledger import Ledger
from tasks.one_machine.fleet import LocalFleet
from tasks.records import MigrationRecord
from tests.redis_server import RedisServer
from tests.vm.machine import Console, await_ticks, vm_spec
from workers.guests.contract import RunState
from workers.guests.qemu.guest import QemuGuest

_RAM = 1 << 30
_names = (f"vm{number}" for number in itertools.count(1))


class VmFleet:
    """Two hosts, and one guest at a time."""

    def __init__(self, redis: RedisServer, environment: Mapping[str, str]) -> None:
        settings = RedisSettings.model_validate({"url": redis.url})
        self.fleet = LocalFleet(settings, ram_bytes=_RAM, environment=environment)
        self.ways = itertools.cycle([("alpha", "beta"), ("beta", "alpha")])

    def start(self, **shape: Any) -> QemuGuest:
        guest = self.fleet.hosts["alpha"].guests.start_qemu(vm_spec(next(_names), **shape))
        self.ways = itertools.cycle([("alpha", "beta"), ("beta", "alpha")])
        with closing(Ledger(self.fleet.settings)) as ledger:
            announce(ledger, self.fleet.hosts["alpha"].settings, guest)
        await_ticks(guest, 5)
        return guest

    def move(self, name: str) -> tuple[MigrationRecord, str]:
        """To the other host; how it ended, and where the guest should be by then."""
        _, destination = next(self.ways)
        with closing(Ledger(self.fleet.settings)) as ledger:
            request = request_for(name, destination, ("verify-ram=on",), ("transport=tcp",))
            begin(ledger, bell_for(self.fleet.settings), request)
            return follow(ledger, request.migration, None), destination

    def guest(self, host: str, name: str) -> QemuGuest:
        found = self.fleet.hosts[host].guests.open(name)
        assert isinstance(found, QemuGuest)
        return found

    def end(self) -> None:
        for host in self.fleet.hosts.values():
            for left in host.guests.list():
                host.guests.stop(left.name)


@pytest.fixture
def vms(own_redis_server: RedisServer, request: pytest.FixtureRequest) -> Iterator[VmFleet]:
    made = VmFleet(own_redis_server, getattr(request, "param", {}))
    with made.fleet as fleet:
        fleet.start()
        yield made
        made.end()


def test_to_and_fro_it_goes_on_counting_and_finds_every_page_as_it_left_it(vms: VmFleet) -> None:
    for shape in ({"vcpus": 1, "rate": 20}, {"vcpus": 2, "rate": 5, "balloon": True, "nics": [{"mac": MAC}]}):
        guest = vms.start(**shape)
        with closing(Console()) as console:
            console.follow(guest)
            for _ in range(4):
                record, host = vms.move(guest.name)
                assert ending(record) is None, record
                moved = vms.guest(host, guest.name)
                console.follow(moved)
                assert moved.status() is RunState.RUNNING
                await_ticks(moved, 10)
                others = [other for name, other in vms.fleet.hosts.items() if name != host]
                assert not any(other.guests.holds(guest.name) for other in others)
            lines = console.said()
        ticks = [line.tick for line in lines]
        assert ticks == list(range(len(ticks)))
        assert not lines[-1].bad
        assert lines[-1].checked > lines[0].checked
        vms.end()


@pytest.mark.parametrize("vms", [{"DROVEWAY_FAULT": "drop-final-dirty"}], indirect=True)
def test_the_witness_sees_it_when_the_last_pages_are_left_out(vms: VmFleet) -> None:
    guest = vms.start(rate=40)
    record, host = vms.move(guest.name)
    assert ending(record) is None
    moved = vms.guest(host, guest.name)
    assert moved.status() is RunState.RUNNING
    try:
        seen = await_ticks(moved, 100)[-1].bad
    except AssertionError:  # its kernel's own pages were among them: it says nothing any more
        seen = 1
    assert seen


MAC = "52:54:00:00:00:01"
