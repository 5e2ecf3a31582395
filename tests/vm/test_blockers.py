"""What keeps a virtual machine from being moved, each kind provoked in a real QEMU and found beforehand.

Not here, since they take an IOMMU: vfio and nvme:// (tests/lab/inside/passed_through.py). Nowhere, for want of modules:
vdpa, registered buffers (Debian's QEMU 7.2 is built without blkio), and a QEMU that lacks x-ignore-shared. For those
tests/unit/test_qemu_blockers.py gives the judgement the words that QEMU would use.
"""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from config.errors import HostError
from tests.requirements import missing
from tests.until import until
from tests.vm.held_monitor import give_up_soon
from tests.vm.images import initrd_with_balloon
from tests.vm.machine import vm_spec
from workers.guests.blocker import Blocker
from workers.guests.local import LocalGuests
from workers.guests.qemu.blockers import blockers_at_source
from workers.guests.qemu.cpu_models import cpu_models
from workers.guests.qemu.guest import BINARY, QemuGuest
from workers.guests.qemu.inspection import facts_of
from workers.guests.qemu.monitor import CONNECT_SECONDS, CommandRefusedError, Monitor
from workers.guests.qemu.probing import START_SECONDS, probed
from workers.guests.qemu.queries import machine_memory
from workers.guests.qemu.spec import QemuGuestSpec

#: The machine type whose PCI bus takes devices while it runs.
_PLUGGABLE = {"machine": "pc"}


@pytest.fixture
def guests(tmp_path: Path) -> Iterator[LocalGuests]:
    (tmp_path / "ram").mkdir()
    made = LocalGuests(tmp_path / "state", tmp_path / "ram")
    yield made
    for left in made.list():
        made.stop(left.name)


@pytest.fixture
def guest(guests: LocalGuests) -> Iterator[QemuGuest]:
    made = guests.start_qemu(vm_spec("vm1", **_PLUGGABLE))
    yield made
    made.close()


def words(blockers: Sequence[Blocker]) -> list[str]:
    for each in blockers:
        assert each.what
        assert each.remedy
    return [each.reason for each in blockers]


def found(guest: QemuGuest) -> list[str]:
    blockers = guest.blockers()
    guest.close()
    return words(blockers)


def tell(guest: QemuGuest, command: str, **arguments: Any) -> None:
    with Monitor(guest.name, guest.places.status) as monitor:
        monitor.execute(command, **arguments)


@contextmanager
def by_hand(directory: Path, *options: str) -> Iterator[tuple[Monitor, int]]:
    """A QEMU of somebody else's, not running yet: its monitor and process."""
    with ExitStack() as cleanup:
        ours, theirs = socket.socketpair()
        cleanup.callback(ours.close)
        with theirs:
            command = [
                "qemu-system-x86_64",
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
                "-accel",
                "tcg",
                "-S",
            ]
            command += ["-chardev", f"socket,id=mon,fd={theirs.fileno()}", "-mon", "chardev=mon,mode=control"]
            process = subprocess.Popen([*command, *options], pass_fds=[theirs.fileno()], cwd=directory)
        cleanup.callback(process.wait)
        cleanup.callback(process.kill)
        with Monitor("theirs", ours) as monitor:
            yield monitor, process.pid


def judged(monitor: Monitor, pid: int) -> list[Blocker]:
    return blockers_at_source(facts_of(monitor, pid))


# --- at the source ----------------------------------------------------------------------------------------------------


def test_a_guest_of_ours_has_none_with_every_device_that_a_shape_can_name(guests: LocalGuests, tmp_path: Path) -> None:
    image = tmp_path / "disk"
    image.write_bytes(bytes(1 << 20))
    disks = [{"path": str(image), "cache": "writeback"}]
    guest = guests.start_qemu(vm_spec("vm1", disks=disks, balloon=True, nics=[{"mac": "52:54:00:00:00:01"}]))
    with closing(guest):
        assert guest.blockers() == []
        described = guest.description()
        assert guests.obstacles(described) == []


def test_vhost_user(guests: LocalGuests, guest: QemuGuest, tmp_path: Path) -> None:
    image, line = tmp_path / "disk", tmp_path / "backend"
    image.write_bytes(bytes(1 << 20))
    command = ["qemu-storage-daemon", "--blockdev", f"driver=file,filename={image},node-name=disk"]
    command += ["--export", f"type=vhost-user-blk,id=export,addr.type=unix,addr.path={line},node-name=disk,writable=on"]
    with subprocess.Popen(command) as backend:
        try:
            until("a back-end that listens", line.exists, 30)
            address = {"type": "unix", "data": {"path": str(line)}}
            backed = {"type": "socket", "data": {"addr": address, "server": False}}
            tell(guest, "chardev-add", id="line", backend=backed)
            tell(guest, "device_add", driver="vhost-user-blk-pci", id="theirs", chardev="line")
            assert found(guest) == ["vhost-user", "not-in-shape"]
        finally:
            guests.stop("vm1")
            backend.kill()


def test_memory_that_was_plugged_in(guest: QemuGuest, tmp_path: Path) -> None:
    tell(
        guest, "object-add", qom_type="memory-backend-file", id="more", size=1 << 20, share=True, mem_path=str(tmp_path)
    )
    assert found(guest) == ["more-memory"]
    tell(guest, "device_add", driver="ivshmem-plain", id="window", memdev="more", master="off")
    assert found(guest) == ["more-memory", "not-in-shape", "qemu"]  # QEMU's own word is about who shares it


def test_what_qemu_itself_says_is_said(guest: QemuGuest, tmp_path: Path) -> None:
    tell(guest, "blockdev-add", driver="vvfat", node_name="folder", dir=str(tmp_path), rw=True)
    blockers = guest.blockers()
    assert set(words(blockers)) == {"qemu"}
    assert any("vvfat" in each.what for each in blockers)


def test_a_device_that_was_plugged_in_is_not_known_to_the_destination(guest: QemuGuest) -> None:
    tell(guest, "device_add", driver="virtio-rng-pci", id="more")
    assert found(guest) == ["not-in-shape"]


def test_a_disk_that_was_exchanged_for_another_file(guests: LocalGuests, tmp_path: Path) -> None:
    base, overlay, other = tmp_path / "base", tmp_path / "overlay", tmp_path / "other"
    for path in (base, other):
        path.write_bytes(bytes(1 << 20))
    disks = [{"path": str(other), "read_only": True}, {"path": str(base)}]
    guest = guests.start_qemu(vm_spec("vm1", disks=disks, nics=[{"mac": "52:54:00:00:00:01"}]))
    assert found(guest) == []
    snapshot = {"node_name": "disk1", "snapshot_node_name": "snap", "snapshot_file": str(overlay), "format": "qcow2"}
    tell(guest, "blockdev-snapshot-sync", **snapshot)
    (blocker,) = guest.blockers()
    assert blocker.reason == "not-in-shape"
    assert f"disk 1 is {overlay} (qcow2)" in blocker.what
    assert f"its shape says {base} (raw)" in blocker.what
    with pytest.raises(HostError, match=f"exchanged while it moved: .*{overlay}.*says .*{base}"):
        guest.stop()
    guest.cont()
    guest.close()
    guests.stop("vm1")
    layered = guests.start_qemu(vm_spec("vm1", disks=[{"path": str(overlay), "format": "qcow2"}]))
    assert found(layered) == []  # and a file that its image is laid over is none of its own


def test_a_migration_of_somebody_elses(guests: LocalGuests, guest: QemuGuest) -> None:
    """To nobody, who reads nothing: it stays under way until it is cancelled."""
    ours, theirs = socket.socketpair()
    with ours:
        with Monitor("vm1", guest.places.monitor) as monitor:
            with theirs:
                monitor.send_descriptor("away", theirs.fileno())
            monitor.execute("migrate", uri="fd:away")
        assert found(guest) == ["migrating"]
        with pytest.raises(CommandRefusedError), guest.outgoing_state(lambda piece: None):
            pass
        assert not guest.stopped_here  # nothing that would be ended with it
        tell(guest, "migrate_cancel")
    until("the end of it", lambda: found(guest) == [], 30)
    twin = guests.incoming(guest.description() | {"name": "vm2"} | {"shape": renamed(guest, "vm2")})
    with closing(twin):
        assert words(twin.blockers()) == ["migrating"]


def renamed(guest: QemuGuest, name: str) -> dict[str, Any]:
    return guest.spec.model_copy(update={"name": name}).to_json()


def test_a_monitor_that_somebody_holds(guest: QemuGuest, monkeypatch: pytest.MonkeyPatch) -> None:
    give_up_soon(monkeypatch, guest.places.monitor)
    with Monitor("vm1", guest.places.monitor):
        assert found(guest) == ["monitor-held"]
    until("a monitor that is free again", lambda: not found(guest), 30)


def test_all_are_said_at_once(guest: QemuGuest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    give_up_soon(monkeypatch, guest.places.monitor)
    tell(guest, "device_add", driver="virtio-rng-pci", id="more")
    tell(guest, "object-add", qom_type="memory-backend-ram", id="more", size=1 << 20)
    tell(guest, "blockdev-add", driver="vvfat", node_name="folder", dir=str(tmp_path), rw=True)
    with Monitor("vm1", guest.places.monitor):
        assert set(found(guest)) == {"more-memory", "not-in-shape", "monitor-held", "qemu"}


def test_memory_that_is_not_a_shared_file(tmp_path: Path) -> None:
    vm_spec("only-for-what-it-requires")
    file = f"memory-backend-file,id=ram,size=64M,mem-path={tmp_path}/ram"
    for options, says in (
        (["-m", "64M"], "memory-backend-ram"),
        (["-m", "64M", "-machine", "q35,memory-backend=ram", "-object", f"{file},share=off"], "private"),
        (
            ["-m", "64M", "-machine", "q35,memory-backend=ram", "-object", "memory-backend-memfd,id=ram,size=64M"],
            "memfd",
        ),
    ):
        with by_hand(tmp_path, *options) as (monitor, pid):
            (blocker,) = judged(monitor, pid)
            assert blocker.reason == "ram-not-shared"
            assert says in blocker.what
    shared = ["-m", "64M", "-machine", "q35,memory-backend=ram", "-object", f"{file},share=on"]
    with by_hand(tmp_path, *shared) as (monitor, pid):
        assert machine_memory(monitor) == "ram"
        assert judged(monitor, pid) == []
        (tmp_path / "ram").unlink()  # another file of this path would be moved, or none
        assert words(judged(monitor, pid)) == ["ram-not-shared"]


def test_virtio_mem_in_motion(tmp_path: Path) -> None:
    """The machine runs nothing, so nobody answers the request: the device has what it had, and is to have more."""
    vm_spec("only-for-what-it-requires")
    ram = f"memory-backend-file,id=ram,share=on,size=128M,mem-path={tmp_path}/ram"
    options = ["-m", "128M,slots=2,maxmem=1G", "-machine", "pc,memory-backend=ram", "-object", ram]
    options += ["-object", "memory-backend-ram,id=more,size=256M", "-device", "virtio-mem-pci,id=stick,memdev=more"]
    with by_hand(tmp_path, *options) as (monitor, pid):
        assert words(judged(monitor, pid)) == ["more-memory"]
        monitor.execute("qom-set", path="/machine/peripheral/stick", property="requested-size", value=64 << 20)
        blockers = judged(monitor, pid)
        assert words(blockers) == ["more-memory", "virtio-mem-moving"]
        assert "0 bytes and is to have 67108864" in blockers[1].what


def test_a_balloon_in_motion(guests: LocalGuests, tmp_path: Path) -> None:
    """A guest that drives it: given a new size again and again it is always on its way."""
    initrd = initrd_with_balloon(tmp_path)
    guest = guests.start_qemu(vm_spec("vm1", mib=8, balloon=True, initrd=str(initrd)))
    done = threading.Event()

    def size() -> int:
        with Monitor("vm1", guest.places.status) as monitor:
            return int(monitor.execute("query-balloon")["actual"])

    def sway() -> None:
        with Monitor("vm1", guest.places.monitor) as monitor:
            while not done.is_set():
                for mib in (100, 120):
                    monitor.execute("balloon", value=mib << 20)
                    time.sleep(0.15)

    assert found(guest) == []
    swaying = threading.Thread(target=sway)
    swaying.start()
    try:
        until("a driver that moves the balloon", lambda: size() != 128 << 20, 120)
        until("a look that sees it move", lambda: "balloon-moving" in found(guest), 120)
    finally:
        done.set()
        swaying.join()
    until("a balloon at rest", lambda: found(guest) == [], 120)


# --- at the destination -----------------------------------------------------------------------------------------------


def described(guest: QemuGuest, **shape: Any) -> dict[str, Any]:
    said = guest.description()
    return said | {"shape": said["shape"] | shape}


@pytest.mark.parametrize(
    ("shape", "reason", "says"),
    [
        ({"machine": "pc-i440fx-of-next-year"}, "machine-type", "of-next-year"),
        ({"cpu": "no-such-model"}, "cpu-model", "no-such-model"),
        ({"kernel": "/nowhere/linux"}, "file", "/nowhere/linux cannot be looked at here"),
        ({"disks": [{"path": "/nowhere/disk"}]}, "file", "/nowhere/disk"),
        ({"nics": [{"mac": "52:54:00:00:00:01", "tap": "nosuchtap"}]}, "tap", "nosuchtap is not on this host"),
        ({"nics": [{"mac": "52:54:00:00:00:01", "tap": "lo"}]}, "tap", "no tap device"),
        ({"memory": "a lot"}, "malformed", "memory"),
    ],
)
def test_what_a_destination_lacks(
    guests: LocalGuests, guest: QemuGuest, shape: dict[str, Any], reason: str, says: str
) -> None:
    blockers = guests.obstacles(described(guest, **shape))
    assert words(blockers) == [reason]
    assert says in blockers[0].what


def test_all_that_a_destination_lacks_is_said_at_once(guests: LocalGuests, guest: QemuGuest) -> None:
    lacking = {
        "machine": "other",
        "cpu": "other",
        "kernel": "/nowhere",
        "nics": [{"mac": "52:54:00:00:00:01", "tap": "no"}],
    }
    assert words(guests.obstacles(described(guest, **lacking))) == ["machine-type", "cpu-model", "file", "tap"]


def test_features_that_the_destination_cannot_give(guests: LocalGuests, guest: QemuGuest) -> None:
    said = guest.description()
    assert "sse2" in said["needs"]["features"]
    said["needs"]["features"] += ["avx-of-next-year"]
    (blocker,) = guests.obstacles(said)
    assert blocker.reason == "cpu-model"
    assert "avx-of-next-year" in blocker.what
    assert "sse2" not in blocker.what


def test_a_local_disk_and_a_kernel_that_differs(guests: LocalGuests, tmp_path: Path) -> None:
    image, kernel = tmp_path / "disk", tmp_path / "initrd"
    image.write_bytes(bytes(1 << 20))
    kernel.write_bytes(Path(vm_spec("vm1").initrd or "").read_bytes())
    disks = [{"path": str(image), "cache": "writeback"}]
    guest = guests.start_qemu(vm_spec("vm1", disks=disks, initrd=str(kernel)))
    said = guest.description()
    image.rename(tmp_path / "moved")
    image.write_bytes(bytes(1 << 20))  # as if another host had one of this name
    kernel.write_bytes(b"of another release")
    blockers = guests.obstacles(said)
    assert words(blockers) == ["local-disk", "file"]
    assert "another file here" in blockers[0].what
    for each in said["needs"]["files"]:
        each["machine"] = "another machine's boot"
    blockers = guests.obstacles(said)
    assert words(blockers) == ["local-disk", "file"]
    assert "no other machine shares" in blockers[0].what


def test_a_backing_file_is_looked_for_too(guests: LocalGuests, guest: QemuGuest, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.write_bytes(bytes(1 << 20))
    tell(guest, "blockdev-add", driver="file", node_name="base", filename=str(base), read_only=True)
    said = guest.description()
    base.unlink()
    assert words(guests.obstacles(said)) == ["file"]


def test_a_host_without_qemu(guests: LocalGuests, guest: QemuGuest, monkeypatch: pytest.MonkeyPatch) -> None:
    said = guest.description()
    for binary, says in (("qemu-nowhere", "not installed"), ("/bin/false", "cannot be asked")):
        monkeypatch.setattr("workers.guests.qemu.guest.BINARY", binary)
        (blocker,) = guests.obstacles(said)
        assert blocker.reason == "no-qemu"
        assert says in blocker.what


def test_a_qemu_that_is_started_to_be_asked_may_take_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a loaded host: what a running one is given would refuse the host as one without QEMU."""
    given = []

    def connect(name: str, path: socket.socket, seconds: float = CONNECT_SECONDS) -> Monitor:
        given.append(seconds)
        return Monitor(name, path, seconds)

    monkeypatch.setattr("workers.guests.qemu.probing.Monitor", connect)
    with probed(BINARY) as monitor:
        assert monitor.execute("query-version")
    assert given == [START_SECONDS]
    assert START_SECONDS > 10 * CONNECT_SECONDS


def test_plans_are_told_the_models_that_a_real_qemu_knows() -> None:
    assert {"max", "qemu64", "EPYC"} <= cpu_models(BINARY)


def test_a_tap_device_that_is_there_will_do(guests: LocalGuests, guest: QemuGuest) -> None:
    if not Path("/dev/net/tun").exists():
        missing("no /dev/net/tun")
    name = "drovewaytest0"
    subprocess.run(["ip", "tuntap", "add", name, "mode", "tap"], check=True)
    try:
        said = described(guest, nics=[{"mac": "52:54:00:00:00:01", "tap": name}])
        assert guests.obstacles(said) == []
        taken = QemuGuestSpec.from_json(said["shape"]).model_copy(update={"name": "vm2"})
        guests.start_qemu(taken)
        assert words(guests.obstacles(said)) == ["tap"]
    finally:
        for left in guests.list():
            if left.name == "vm2":
                guests.stop("vm2")
        subprocess.run(["ip", "tuntap", "del", name, "mode", "tap"], check=True)
