"""A virtual machine whose memory goes over RDMA. Runs in a lab machine, so it is an emulation within an emulation.

That kernel has no PAGEMAP_SCAN, and it writes to a QEMU's memory itself: what was written is found by content.
"""

from __future__ import annotations

from pathlib import Path

from tests.redis_server import RedisServer
from tests.vm.fleet import VmFleet
from tests.vm.working_machine import Case, working_machine

MOVES = 3
#: Seconds for workers to speak up, of which each imports Celery.
_START_SECONDS = 600.0
#: The address of the device (tests/lab/network, loopback).
_ADDRESS = "10.9.1.1"
#: Everything takes its time here; what counts is what arrives.
_PARAMETERS = ("transport=verbs", "downtime-limit=10s", "max-rounds=3", "on-stall=force")


def test_to_and_fro_over_rdma_every_page_is_as_it_was_left(own_redis_server: RedisServer, tmp_path: Path) -> None:
    vms = VmFleet(own_redis_server, {}, {"host.address": _ADDRESS, "worker.pairing_timeout": _START_SECONDS})
    with vms.fleet:
        vms.fleet.start(_START_SECONDS)
        with working_machine(vms, Case("over RDMA", rate=1), tmp_path) as machine:
            for number in range(MOVES):
                print(number, machine.move(parameters=_PARAMETERS), flush=True)
            found = machine.end()
    assert found.clean, found
