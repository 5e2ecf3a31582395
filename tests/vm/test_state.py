"""QEMU's device state from one QEMU into another, in pieces, without workers: how it arrives, and what goes wrong."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from config.errors import HostError
from tests.until import until
from tests.vm.hand_over import hand_over
from tests.vm.machine import await_ticks, vm_spec
from workers.guests.contract import RunState
from workers.guests.local import LocalGuests
from workers.guests.qemu.draining import drains
from workers.guests.qemu.guest import BINARY, QemuGuest
from workers.guests.qemu.monitor import CommandRefusedError, Monitor


class Hosts:
    """Two hosts, a guest of the one, and its incoming twin on the other."""

    def __init__(self, path: Path) -> None:
        self.hosts = []
        for name in ("alpha", "beta"):
            (path / name / "ram").mkdir(parents=True)
            self.hosts.append(LocalGuests(path / name / "state", path / name / "ram"))
        self.guest = self.hosts[0].start_qemu(vm_spec("vm1", balloon=True, nics=[{"mac": "52:54:00:00:00:01"}]))
        self.twin: QemuGuest | None = None
        await_ticks(self.guest, 5)

    def make_twin(self, **other: Any) -> QemuGuest:
        described = self.guest.description()
        made = self.hosts[1].incoming(described | {"shape": described["shape"] | other})
        assert isinstance(made, QemuGuest)
        self.twin = made
        return made

    def end(self) -> None:
        self.guest.close()
        if self.twin is not None:
            self.twin.close()
        for guests in self.hosts:
            for left in guests.list():
                guests.stop(left.name)


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    made = Hosts(tmp_path)
    yield made
    made.end()


def goes_on(guest: QemuGuest) -> None:
    assert guest.status() is RunState.RUNNING
    assert not await_ticks(guest, 5)[-1].bad


def test_it_arrives_and_the_guest_waits_there_until_it_is_told_to_run(hosts: Hosts) -> None:
    twin = hosts.make_twin()
    hand_over(hosts.guest, twin)
    assert twin.status() is hosts.guest.status() is RunState.PAUSED
    twin.cont()
    twin.announce()
    goes_on(twin)
    assert hosts.guest.status() is RunState.PAUSED


def test_what_goes_before_the_pause_goes_while_nobody_waits_for_it(hosts: Hosts) -> None:
    twin = hosts.make_twin()
    with (
        twin.incoming_state(lambda piece: None) as incoming,
        hosts.guest.outgoing_state(incoming.feed) as outgoing,
    ):
        assert not outgoing.prepared()
        outgoing.prepare()
        until("the guest's pause", outgoing.prepared, 30)
        assert hosts.guest.status() is RunState.PAUSED
        hosts.guest.stop()  # its disks are drained by then, too
        with Monitor("vm1", hosts.guest.places.status) as monitor:
            assert monitor.execute("query-migrate")["status"] == "pre-switchover"
    hosts.guest.cont()
    goes_on(hosts.guest)


def test_a_source_that_has_sent_it_all_can_still_go_on(hosts: Hosts) -> None:
    twin = hosts.make_twin()
    hand_over(hosts.guest, twin)
    twin.quit()
    hosts.guest.cont()
    goes_on(hosts.guest)


def test_a_damaged_state_is_refused_in_qemus_words_and_the_source_goes_on(hosts: Hosts) -> None:
    twin = hosts.make_twin()
    with pytest.raises(HostError, match=r"could not (load|move) its device state: .+"):
        hand_over(hosts.guest, twin, lambda piece: piece[:-1] + bytes([piece[-1] ^ 0xFF]) if piece else piece)
    hosts.guest.cont()
    goes_on(hosts.guest)


@pytest.mark.parametrize("other", [{"balloon": False}, {"nics": []}, {"machine": "pc-q35-7.1"}, {"vcpus": 2}])
def test_a_twin_of_another_shape_does_not_load_it_and_the_source_goes_on(hosts: Hosts, other: dict[str, Any]) -> None:
    twin = hosts.make_twin(**other)
    with pytest.raises(HostError, match=r"could not (load|move) its device state: .+"):
        hand_over(hosts.guest, twin)
    hosts.guest.cont()
    goes_on(hosts.guest)


def test_a_guest_that_was_left_paused_for_its_switch_over_is_resumed_by_another_handle(hosts: Hosts) -> None:
    with hosts.guest.outgoing_state(lambda piece: None):
        hosts.guest.stop()
    hosts.guest.close()
    assert hosts.guest.status() is RunState.PAUSED
    found = hosts.hosts[0].open("vm1")
    found.cont()
    found.close()
    goes_on(hosts.guest)
    twin = hosts.make_twin()
    hand_over(hosts.guest, twin)
    twin.cont()
    goes_on(twin)


def test_what_qemu_refuses_leaves_no_stream_and_nobody_who_takes_its_events(hosts: Hosts, tmp_path: Path) -> None:
    def refused_in(refusing: AbstractContextManager[Any]) -> None:
        with pytest.raises(CommandRefusedError), refusing:
            hosts.guest.stop()
        assert [each.name for each in threading.enumerate() if each.name == "device state"] == []
        monitor = hosts.guest._moving()
        for command in ("stop", "cont"):
            monitor.execute(command)
        assert monitor.await_event(lambda event: event["event"] == "STOP", 30, "pause")
        assert monitor.await_event(lambda event: event["event"] == "RESUME", 30, "go on")

    refused_in(hosts.guest.incoming_state(lambda piece: None))  # it was not started for one
    hosts.guest._moving().execute("blockdev-add", driver="vvfat", node_name="folder", dir=str(tmp_path), rw=True)
    refused_in(hosts.guest.outgoing_state(lambda piece: None))  # QEMU moves no such disk


def test_an_empty_transaction_drains_and_the_trial_would_see_it_if_it_did_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loaded host may leave it in doubt; tests/unit/test_qemu_draining.py has what is made of what is seen."""
    binary = Path(shutil.which(BINARY) or BINARY)
    assert drains(binary)
    real = Monitor.ask

    def without(self: Monitor, command: str, **arguments: Any) -> Any:
        return real(self, "query-name") if command == "transaction" else real(self, command, **arguments)

    monkeypatch.setattr(Monitor, "ask", without)
    assert not drains(binary)
    assert not drains(Path("/nowhere/qemu"))


def test_where_it_does_not_drain_the_guest_is_paused_while_pages_are_protected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.guests.qemu.guest.known_to_drain", lambda binary, notes: False)
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20))
    guests = LocalGuests(tmp_path / "state", tmp_path)
    guest = guests.start_qemu(vm_spec("vm1", disks=[{"path": str(disk)}]))
    assert guest.protect(guest.status) is RunState.PAUSED
    assert guest.status() is RunState.RUNNING
    with pytest.raises(ZeroDivisionError):
        guest.protect(lambda: 1 // 0)
    assert guest.status() is RunState.RUNNING
    guest.close()
    guests.stop("vm1")
