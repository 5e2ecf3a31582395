"""A QEMU that somebody else started: taken over when ours would be the same machine, moved to and fro, else refused."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from config.errors import HostError, RefusedError
from tasks.cli.following import ending
from tasks.cli.guest import announce
from tasks.ledger.ledger import Ledger
from tests.until import until
from tests.vm.fleet import VmFleet
from tests.vm.held_monitor import give_up_soon
from tests.vm.machine import await_ticks, said, vm_spec
from workers.guests.contract import RunState
from workers.guests.local import LocalGuests
from workers.guests.process_identity import ProcessIdentity
from workers.guests.qemu.adoption import Stranger
from workers.guests.qemu.monitor import Monitor

_CHECKOUT = Path(__file__).resolve().parents[2]
_MAC = "52:54:00:00:00:07"


@dataclass(slots=True)
class Theirs:
    """A machine as somebody starts one by hand: no -uuid, no ids but of what he refers to, one QMP socket."""

    directory: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def stranger(self) -> Stranger:
        assert self.process
        socket = self.directory / "qmp"
        return Stranger(self.process.pid, socket, socket)

    @property
    def ram(self) -> Path:
        return self.directory / "memory"

    def start(self, *more: str, machine: str = "q35,memory-backend=mem0", share: str = "on") -> Theirs:
        shape = vm_spec("theirs")
        disk = self.directory / "disk"
        disk.write_bytes(bytes(1 << 20))
        command = ["qemu-system-x86_64", "-display", "none", "-nodefaults", "-accel", "tcg", "-m", "128", "-cpu", "max"]
        command += ["-machine", machine, "-smp", "2", "-qmp", f"unix:{self.directory}/qmp,server=on,wait=off"]
        command += ["-object", f"memory-backend-file,id=mem0,size=128M,share={share},mem-path={self.ram},align=2M"]
        command += ["-chardev", f"file,id=out,path={self.directory}/said", "-serial", "chardev:out"]
        command += ["-drive", f"if=none,id=d,format=raw,file={disk}", "-device", "virtio-blk-pci,drive=d"]
        command += ["-netdev", "user,id=n", "-device", f"virtio-net-pci,netdev=n,mac={_MAC},romfile="]
        command += ["-kernel", shape.kernel or "", "-initrd", shape.initrd or "", "-append", shape.append, *more]
        with (self.directory / "log").open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        until("a QMP socket", (self.directory / "qmp").exists, 30)
        return self

    def goes_on(self) -> None:
        """It says more than it has said, and its monitor is free."""
        assert self.process
        assert self.process.poll() is None
        file = self.directory / "said"
        before = file.read_bytes().count(b"tick=") if file.exists() else 0
        until("its witness", lambda: file.exists() and file.read_bytes().count(b"tick=") > before + 2, 120)
        with Monitor("theirs", self.stranger.monitor) as monitor:
            assert monitor.execute("query-status")["status"] == "running"

    def end(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def theirs(tmp_path: Path) -> Iterator[Theirs]:
    (tmp_path / "theirs").mkdir()
    made = Theirs(tmp_path / "theirs")
    yield made
    made.end()


@pytest.fixture
def guests(tmp_path: Path) -> Iterator[LocalGuests]:
    (tmp_path / "ram").mkdir()
    made = LocalGuests(tmp_path / "state", tmp_path / "ram")
    yield made
    for left in made.list():
        made.stop(left.name)


def refused(guests: LocalGuests, theirs: Theirs) -> str:
    with pytest.raises(RefusedError) as raised:
        guests.adopt("web", theirs.stranger)
    assert raised.value.reason == "not-adoptable"
    assert not guests.list()
    theirs.goes_on()
    return str(raised.value)


def test_it_is_listed_stopped_and_nothing_is_left(guests: LocalGuests, theirs: Theirs, tmp_path: Path) -> None:
    theirs.start()
    guest = guests.adopt("web", theirs.stranger)
    shape = guest.spec
    assert shape.machine.startswith("pc-q35-")
    assert (shape.cpu, shape.accel, shape.vcpus, shape.memory, shape.ram_id) == ("max", "tcg", 2, 128 << 20, "mem0")
    assert [(disk.path, disk.format, disk.cache) for disk in shape.disks] == [
        (str(theirs.directory / "disk"), "raw", "writeback")
    ]
    assert [nic.mac for nic in shape.nics] == [_MAC]
    theirs.goes_on()
    (listed,) = guests.list()
    assert (listed.name, listed.kind, listed.pid, listed.status) == ("web", "qemu", guest.pid, RunState.RUNNING)
    assert not list((tmp_path / "ram").iterdir())
    with pytest.raises(RefusedError, match="the guest web already"):
        guests.adopt("other", theirs.stranger)
    assert theirs.process
    with closing(guest):
        assert guest.blockers() == []
    guests.stop("web")
    assert theirs.process.wait(30) is not None
    assert not theirs.ram.exists()
    assert not guests.list()


def test_it_moves_away_and_back(vms: VmFleet, theirs: Theirs) -> None:
    theirs.start()
    alpha = vms.fleet.hosts["alpha"]
    theirs.goes_on()
    adopted = alpha.guests.adopt("web", theirs.stranger)
    with closing(Ledger(vms.fleet.settings)) as ledger:
        announce(ledger, alpha.settings, adopted)
    for number in range(2):
        record, host = vms.move("web")
        assert ending(record) is None, record
        moved = vms.guest(host, "web")
        assert moved.status() is RunState.RUNNING
        await_ticks(moved, 10)
        assert not said(moved)[-1].bad
        if number == 0:
            assert theirs.process
            assert theirs.process.wait(30) is not None
            assert not theirs.ram.exists()
            assert not alpha.guests.holds("web")
    assert moved.spec.ram_id == "mem0"


@pytest.mark.parametrize(
    ("start", "says"),
    [
        (lambda theirs: theirs.start(share="off"), ["ram-not-shared", "private to QEMU"]),
        (lambda theirs: theirs.start(machine="q35,memory-backend=mem0,hpet=off"), ["unlike-ours", "hpet"]),
        (lambda theirs: theirs.start("-device", "virtio-rng-pci"), ["not-in-a-shape", "virtio-rng-pci"]),
        (lambda theirs: theirs.start("-vga", "std"), ["unlike-ours", "VGA on"]),
        (lambda theirs: theirs.start("-device", "virtio-balloon-pci,addr=09.0"), ["unlike-ours", "at 09.0"]),
        (lambda theirs: theirs.start("-smp", "2,sockets=2,cores=1"), ["unlike-ours", "socket-id"]),
    ],
)
def test_what_is_another_machine_is_refused_with_every_reason_and_left_alone(
    guests: LocalGuests, theirs: Theirs, start: object, says: list[str], tmp_path: Path
) -> None:
    assert callable(start)
    start(theirs)
    message = refused(guests, theirs)
    for each in says:
        assert each in message
    assert not list((tmp_path / "ram").iterdir())
    assert theirs.ram.exists()


def test_an_end_of_somebody_elses_migration(guests: LocalGuests, theirs: Theirs, tmp_path: Path) -> None:
    """It is complete as far as this QEMU knows, so the guest may run elsewhere."""
    theirs.start()
    with Monitor("theirs", theirs.stranger.monitor) as monitor:
        monitor.execute("migrate", uri=f"exec:cat > {tmp_path}/elsewhere")
        until("its end", lambda: monitor.execute("query-status")["status"] == "postmigrate", 120)
    with pytest.raises(RefusedError, match=r"postmigrate.*\(migrating\)") as raised:
        guests.adopt("web", theirs.stranger)
    assert raised.value.reason == "not-adoptable"
    assert not guests.list()


def test_memory_without_a_file(guests: LocalGuests, theirs: Theirs) -> None:
    theirs.start(machine="q35")
    message = refused(guests, theirs)
    assert "ram-not-shared" in message
    assert "more-memory" in message


def test_several_reasons_at_once(guests: LocalGuests, theirs: Theirs) -> None:
    theirs.start("-device", "virtio-rng-pci", "-vga", "std", share="off")
    message = refused(guests, theirs)
    for word in ("ram-not-shared", "virtio-rng-pci", "VGA on"):
        assert word in message


def test_a_twin_ends_with_whoever_compares_it_and_leaves_nothing(tmp_path: Path) -> None:
    spec, places = vm_spec("web"), [tmp_path / "ram", tmp_path / "tmp"]
    for place in places:
        place.mkdir()
    lines = ["import sys, time", "from pathlib import Path", "from workers.guests.qemu.adoption import _twin"]
    lines += ["from workers.guests.qemu.spec import QemuGuestSpec", "spec = QemuGuestSpec.from_json(eval(sys.argv[1]))"]
    lines += ["with _twin(spec, Path(sys.argv[2])): print('there', flush=True); time.sleep(600)"]
    command = [sys.executable, "-c", "\n".join(lines), repr(spec.to_json()), str(places[0])]
    environment = {**os.environ, "TMPDIR": str(places[1])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, cwd=_CHECKOUT) as comparing:
        try:
            assert comparing.stdout
            assert comparing.stdout.readline() == b"there\n"
            assert twins(tmp_path)
        finally:
            comparing.kill()
    until("the twin's end", lambda: not twins(tmp_path), 30)
    for place in places:
        assert not list(place.iterdir())


def twins(directory: Path) -> list[str]:
    """QEMUs that work in this directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (process / "cmdline").read_bytes()
            if command.startswith(b"qemu-system") and str(directory).encode() in command:
                found.append(process.name)
    return found


def test_bad_input(guests: LocalGuests, theirs: Theirs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs.start()
    socket = theirs.stranger.monitor
    gone = subprocess.Popen(["true"])
    gone.wait()
    with pytest.raises(RefusedError, match="no process"):
        guests.adopt("web", Stranger(gone.pid, socket, socket))
    with pytest.raises(RefusedError, match="not a monitor of process"):
        guests.adopt("web", Stranger(os.getpid(), socket, socket))
    with pytest.raises(HostError, match="cannot be asked"):
        guests.adopt("web", Stranger(theirs.stranger.pid, tmp_path / "nowhere", socket))
    give_up_soon(monkeypatch, socket)
    with Monitor("theirs", socket), pytest.raises(HostError, match="held by somebody else"):
        guests.adopt("web", theirs.stranger)
    assert not guests.list()
    theirs.goes_on()
    assert ProcessIdentity.of(theirs.stranger.pid)
