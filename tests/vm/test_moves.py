"""Virtual machines moved by real workers between two hosts of one machine, to and fro, while they work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from tasks.cli.following import ending
from tests.redis_server import RedisServer
from tests.vm.fleet import VmFleet
from tests.vm.machine import Console, await_ticks
from workers.guests.contract import RunState


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
