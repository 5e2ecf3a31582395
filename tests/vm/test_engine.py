"""QEMU moves the memory itself, and everything around it is as with our own rounds: real workers, real QEMUs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from tasks.cli.following import ending
from tasks.records import MigrationRecord
from tests.redis_server import RedisServer
from tests.vm.fleet import VmFleet
from tests.vm.machine import Console, await_ticks
from workers.guests.contract import RunState
from workers.guests.qemu.guest import QemuGuest


@pytest.fixture
def vms(own_redis_server: RedisServer) -> Iterator[VmFleet]:
    made = VmFleet(own_redis_server, {})
    with made.fleet as fleet:
        fleet.start()
        yield made
        made.end()


def move_to_and_fro(vms: VmFleet, guest: QemuGuest, *parameters: str, times: int = 2) -> list[MigrationRecord]:
    """Each move completes, one copy is left, no tick is missing and no page bad; the records."""
    records = []
    with closing(Console()) as console:
        console.follow(guest)
        for _ in range(times):
            record, host = vms.move(guest.name, *parameters)
            assert ending(record) is None, record
            records.append(record)
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
    return records


def test_memory_that_nobody_else_can_reach_is_left_to_qemu_and_the_report_says_why(vms: VmFleet) -> None:
    guest = vms.start(memory_backend="anonymous", rate=20)
    for record in move_to_and_fro(vms, guest):
        assert record.source.progress is not None
        chosen, sizes = record.source.progress["choices"], record.source.progress["bytes"]
        assert chosen["engine"] == "qemu"
        assert "not a shared file" in chosen["engine-reason"]
        assert any(note["about"] == "verify-ram" for note in chosen["notes"])
        assert sizes["transferred"] > 32 << 20
        assert len(record.source.progress["rounds"]) > 1
        assert 0 < record.source.progress["seconds"]["downtime"] < record.source.progress["seconds"]["total"]
