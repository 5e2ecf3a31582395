"""A real QEMU as a guest of this host: started, asked, paused, ended; what it leaves, and what is refused."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from config.errors import HostError, RefusedError
from tests.until import until
from tests.vm.held_monitor import give_up_soon
from tests.vm.machine import await_ticks, said, vm_spec
from workers.guests.contract import RunState
from workers.guests.local import LocalGuests
from workers.guests.process_identity import ProcessIdentity
from workers.guests.qemu.guest import QemuGuest
from workers.guests.qemu.monitor import CommandRefusedError, Monitor


@pytest.fixture
def guests(tmp_path: Path) -> Iterator[LocalGuests]:
    (tmp_path / "ram").mkdir()
    made = LocalGuests(tmp_path / "state", tmp_path / "ram")
    yield made
    for left in made.list():
        made.stop(left.name)


@pytest.fixture
def guest(guests: LocalGuests) -> Iterator[QemuGuest]:
    made = guests.start_qemu(vm_spec("vm1"))
    yield made
    made.close()  # it holds the monitor, through which the next handle is to end the guest


def test_it_runs_is_paused_and_runs_on(guests: LocalGuests, guest: QemuGuest) -> None:
    await_ticks(guest, 5)
    guest.stop()
    guest.stop()
    assert guest.status() is RunState.PAUSED
    paused = said(guest)
    guest.cont()
    assert guest.status() is RunState.RUNNING
    ticks = [line.tick for line in await_ticks(guest, 5)]
    assert len(ticks) > len(paused)
    assert ticks == list(range(len(ticks)))
    assert not said(guest)[-1].bad
    (listed,) = guests.list()
    assert (listed.name, listed.kind, listed.memory, listed.pid) == ("vm1", "qemu", 128 << 20, guest.pid)


def test_it_is_in_a_session_of_its_own(guest: QemuGuest) -> None:
    assert os.getsid(guest.pid) != os.getsid(0)
    assert int(Path(f"/proc/{guest.pid}/stat").read_text().rpartition(")")[2].split()[1]) != os.getpid()


def test_nothing_is_left_of_it(guests: LocalGuests, guest: QemuGuest, tmp_path: Path) -> None:
    pid = guest.pid
    guests.stop("vm1")
    assert ProcessIdentity.of(pid) is None
    assert not list((tmp_path / "ram").iterdir())
    assert not list((tmp_path / "state" / "guests").iterdir())
    guest.quit()  # harmless


def test_a_second_one_of_its_name_is_refused(guests: LocalGuests, guest: QemuGuest) -> None:
    with pytest.raises(RefusedError, match="on this host already"):
        guests.start_qemu(vm_spec("vm1"))
    assert guest.status() is RunState.RUNNING


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"kernel": "/nowhere/linux"}, "/nowhere/linux"),
        ({"machine": "pc-of-next-year"}, "unsupported machine type"),
        ({"cpu": "no-such-model"}, "no-such-model"),
        ({"disks": [{"path": "/nowhere/disk"}]}, "/nowhere/disk"),
    ],
)
def test_what_qemu_refuses_is_said_in_its_words_and_leaves_nothing(
    guests: LocalGuests, tmp_path: Path, wrong: dict[str, object], says: str
) -> None:
    with pytest.raises(HostError, match=says):
        guests.start_qemu(vm_spec("vm2", **wrong))
    assert not guests.list()
    assert not list((tmp_path / "ram").iterdir())


def test_it_starts_with_every_device_that_a_shape_can_name(guests: LocalGuests, tmp_path: Path) -> None:
    disks = []
    for number, (cache, aio) in enumerate(
        [("none", "native"), ("directsync", "threads"), ("writeback", "io_uring"), ("writethrough", "threads")]
    ):
        path = tmp_path / f"disk,{number}.raw"
        path.write_bytes(bytes(1 << 20))
        disks.append({"path": str(path), "cache": cache, "aio": aio, "read_only": number == 3})
    made = guests.start_qemu(vm_spec("vm3", disks=disks, nics=[{"mac": "52:54:00:00:00:01"}], balloon=True, vcpus=2))
    assert made.protect(lambda: "protected") == "protected"
    made.stop()
    made.close()
    with Monitor("vm3", made.places.status) as monitor:
        blocks = {block["inserted"]["file"] for block in monitor.execute("query-block")}
        assert blocks == {disk["path"] for disk in disks}
        assert monitor.execute("query-balloon")["actual"] == 128 << 20


def test_one_that_was_killed_is_shown_and_cleaned_away(guests: LocalGuests, guest: QemuGuest, tmp_path: Path) -> None:
    os.kill(guest.pid, 9)
    until("its end", lambda: guests.list()[0].problem, 10)
    with pytest.raises(HostError, match="no process any more"):
        guests.open("vm1").status()
    guests.stop("vm1")
    assert not guests.list()
    assert not list((tmp_path / "ram").iterdir())


def test_a_monitor_that_somebody_holds_is_named(guest: QemuGuest, monkeypatch: pytest.MonkeyPatch) -> None:
    give_up_soon(monkeypatch, guest.places.monitor)
    guest.close()
    with Monitor("vm1", guest.places.monitor):
        with pytest.raises(HostError, match="held by somebody else"):
            guest.stop()
        assert guest.status() is RunState.RUNNING  # has a socket of its own
    monkeypatch.undo()
    guest.stop()


def test_what_the_monitor_refuses_and_what_it_does_not_know(guest: QemuGuest) -> None:
    with Monitor("vm1", guest.places.monitor) as monitor:
        with pytest.raises(CommandRefusedError, match="no-such-command"):
            monitor.execute("no-such-command")
        with pytest.raises(HostError, match="vm1"):
            monitor.await_event(lambda event: False, 0.2, "say something")
        assert monitor.execute("query-status")["status"] == "running"


def test_a_qemu_that_dies_while_it_is_waited_for_is_noticed_at_once(guest: QemuGuest) -> None:
    with Monitor("vm1", guest.places.monitor) as monitor:
        killed = threading.Timer(0.3, os.kill, (guest.pid, 9))
        killed.start()
        began = time.monotonic()
        with pytest.raises(HostError, match="ended while it was to say something"):
            monitor.await_event(lambda event: False, 60, "say something")
        assert time.monotonic() - began < 30
        killed.join()


def test_one_whose_starter_died_before_it_noted_the_process_is_still_ended(
    guests: LocalGuests, guest: QemuGuest
) -> None:
    pid = guest.pid
    (guest.places.directory / "pid").unlink()
    guests.stop("vm1")
    assert ProcessIdentity.of(pid) is None


def test_an_incoming_one_is_as_its_description_says_and_has_no_memory_yet(
    guests: LocalGuests, guest: QemuGuest
) -> None:
    described = guest.description()
    assert described["shape"]["machine"].startswith("pc-q35-")  # and not q35, which may be another version elsewhere
    guest.quit()
    twin = guests.incoming(described)
    assert twin.status() is RunState.INMIGRATE
    assert twin.block_files()[0].path.stat().st_blocks == 0
