"""A virtual machine that cannot move: `droveway check` says everything, a migration is refused, the guest goes on."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from config.errors import DrovewayError
from tasks.app import sender
from tasks.checks import Examiner, examine
from tasks.cli.following import ending
from tasks.cli.migrate import request_for
from tasks.ledger.ledger import Ledger
from tasks.messages import CheckRequest
from tests.requirements import missing
from tests.vm.fleet import VmFleet
from tests.vm.machine import await_ticks, vm_spec
from workers.guests.contract import RunState
from workers.guests.local import LocalGuests
from workers.guests.qemu import guest as qemu_guest
from workers.guests.qemu.guest import QemuGuest
from workers.guests.qemu.monitor import Monitor
from workers.handover.journal import last_line
from workers.pairing.contract import Side


def checked(vms: VmFleet, guest: QemuGuest) -> list[tuple[str | None, str]]:
    ledger = Ledger(vms.fleet.settings)
    try:
        said = examine(vms.fleet.settings, ledger, sender(vms.fleet.settings), request_for(guest.name, "beta"))
    finally:
        ledger.close()
    return [(each.host, each.blocker.reason) for each in said.obstacles]


def refused(vms: VmFleet, guest: QemuGuest) -> DrovewayError:
    record, _ = vms.move(guest.name)
    error = ending(record)
    assert error is not None
    assert error.reason == "blocked"
    assert guest.status() is RunState.RUNNING
    assert not vms.fleet.hosts["beta"].guests.holds(guest.name)
    return error


def test_everything_is_said_and_nothing_is_touched(vms: VmFleet, tmp_path: Path) -> None:
    initrd = tmp_path / "initrd"
    initrd.write_bytes((Path(__file__).resolve().parents[2] / ".lab" / "vm-initrd").read_bytes())
    guest = vms.start(machine="pc", initrd=str(initrd))
    assert checked(vms, guest) == []
    with Monitor(guest.name, guest.places.status) as monitor:
        monitor.execute("device_add", driver="virtio-rng-pci", id="more")
        monitor.execute("object-add", qom_type="memory-backend-ram", id="more", size=1 << 20)
    assert [reason for _, reason in checked(vms, guest)] == ["more-memory", "not-in-shape", "engine"]  # nor by itself
    message = str(refused(vms, guest))
    assert "more-memory" in message
    assert "not-in-shape" in message
    assert last_line(vms.fleet.hosts["alpha"].state_dir, guest.name) is None  # nothing was begun

    with Monitor(guest.name, guest.places.status) as monitor:
        monitor.execute("object-del", id="more")
        monitor.execute("device_del", id="more")
    await_ticks(guest, 3)


def test_a_move_that_begins_meanwhile_gets_the_monitor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guests, answers = LocalGuests(tmp_path / "state", tmp_path), {}
    guest = guests.start_qemu(vm_spec("vm1"))

    def take(*anything: Any, **more: Any) -> Any:
        Monitor("vm1", guest.places.monitor).close()
        return looked(*anything, **more)

    looked = qemu_guest.facts_of
    monkeypatch.setattr(qemu_guest, "facts_of", take)
    checks: Any = SimpleNamespace(put=lambda check, side, answer: answers.update(answer))
    try:
        asked = CheckRequest(check="c-1", guest="vm1", host="alpha", side=Side.SOURCE)
        Examiner("alpha", Side.SOURCE, guests, checks).answer(asked)
        assert answers["blockers"] == [], answers
    finally:
        guests.stop("vm1")


def test_what_the_destination_sees_is_told_to_the_source(vms: VmFleet) -> None:
    """Its tap device is taken there: by the guest itself, for both hosts are one machine."""
    if not Path("/dev/net/tun").exists():
        missing("no /dev/net/tun")
    tap = "drovewaytest1"
    subprocess.run(["ip", "tuntap", "add", tap, "mode", "tap"], check=True)
    try:
        guest = vms.start(nics=[{"mac": "52:54:00:00:00:01", "tap": tap}])
        with Monitor(guest.name, guest.places.monitor):
            assert checked(vms, guest) == [("alpha", "monitor-held"), ("beta", "tap")]
        message = str(refused(vms, guest))
        assert "by what beta sees" in message
        assert f"{tap} is in use here (tap)" in message
        await_ticks(guest, 3)
        vms.end()
    finally:
        subprocess.run(["ip", "tuntap", "del", tap, "mode", "tap"], check=True)
