"""What no host without an IOMMU can have: a passed-through device, and a disk that QEMU drives itself (nvme://).

Runs in a lab machine with spare devices.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from config.errors import RefusedError
from tests.lab.machine import SHARE_IN_GUEST, SPARE_CARD, SPARE_DISK
from tests.until import until
from workers.guests.local import LocalGuests
from workers.guests.qemu.adoption import Stranger
from workers.guests.qemu.blockers import blockers_at_source
from workers.guests.qemu.inspection import facts_of
from workers.guests.qemu.monitor import Monitor
from workers.guests.qemu.spec import QemuGuestSpec

_SECONDS = 60.0
_VFIO = ["-device", f"vfio-pci,host={SPARE_CARD},id=card"]
_NVME = ["-drive", f"if=none,id=d,driver=nvme,device={SPARE_DISK},namespace=1", "-device", "virtio-blk-pci,drive=d"]
#: The emulated controller of 7.2 sends no interrupt for its first answers to a driver that enables MSI-X after its
#: admin queue. QEMU's does so: it sees an answer that is there when it looks, right after asking, and waits for ever
#: for a later one (about every second start). Before it looks it now writes a line to a file of the host, which the
#: main loop of the lab's QEMU serves after it has served the controller.
_NVME += ["-trace", "nvme_process_completion", "-D", str(SHARE_IN_GUEST / "trace")]


@pytest.fixture(scope="module", autouse=True)
def spare_devices() -> None:
    subprocess.run(["/run/modprobe", "vfio-pci"], check=True)
    for address in (SPARE_CARD, SPARE_DISK):
        Path(f"/sys/bus/pci/devices/{address}/driver_override").write_text("vfio-pci")
        Path("/sys/bus/pci/drivers_probe").write_text(address)


@pytest.fixture
def guests(tmp_path: Path) -> Iterator[LocalGuests]:
    (tmp_path / "ram").mkdir()
    made = LocalGuests(tmp_path / "state", tmp_path / "ram")
    yield made
    for left in made.list():
        made.stop(left.name)


@contextmanager
def by_hand(directory: Path, *options: str) -> Iterator[Stranger]:
    """A QEMU of somebody else's, as `guest adopt` would take it but for these options; it does not run yet."""
    line = directory / "qmp"
    command = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg", "-S"]
    command += ["-m", "64M", "-machine", "q35,memory-backend=ram", "-cpu", "max", *options]
    command += ["-object", f"memory-backend-file,id=ram,share=on,size=64M,mem-path={directory}/memory,align=2M"]
    command += ["-qmp", f"unix:{line},server=on,wait=off"]
    with ExitStack() as cleanup:
        process = subprocess.Popen(command)
        cleanup.callback(process.wait)
        cleanup.callback(process.kill)
        until("a QMP socket", lambda: process.poll() is not None or line.exists(), _SECONDS)
        assert process.poll() is None
        yield Stranger(process.pid, line, line)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (_VFIO, {"vfio": "the passed-through device card (vfio-pci)"}),
        (_NVME, {"nvme-driver": "(nvme)", "vfio": "/dev/vfio/"}),
        ([], {}),
    ],
    ids=["vfio-pci", "nvme", "neither"],
)
def test_it_is_named_and_the_machine_is_not_adopted(
    guests: LocalGuests, tmp_path: Path, options: list[str], says: dict[str, str]
) -> None:
    with by_hand(tmp_path, *options) as stranger:
        with Monitor("theirs", stranger.monitor) as monitor:
            blockers = [each for each in blockers_at_source(facts_of(monitor, stranger.pid)) if each.reason != "qemu"]
        found = {each.reason: each.what for each in blockers}
        assert found.keys() == says.keys(), blockers
        for reason, what in says.items():
            assert what in found[reason]
        if not says:
            return
        with pytest.raises(RefusedError) as raised:
            guests.adopt("web", stranger)
        assert raised.value.reason == "not-adoptable"
        for reason in says:
            assert f"({reason})" in str(raised.value)
        assert not guests.list()
        with Monitor("theirs", stranger.monitor) as monitor:
            assert monitor.execute("query-status")["status"] == "prelaunch"


def test_a_device_that_was_plugged_into_a_guest_of_ours(guests: LocalGuests) -> None:
    guest = guests.start_qemu(
        QemuGuestSpec.from_json({"name": "vm1", "memory": "64M", "accel": "tcg", "machine": "pc"})
    )
    with closing(guest):
        assert guest.blockers() == []
    with Monitor("vm1", guest.places.status) as monitor:
        monitor.execute("device_add", driver="vfio-pci", id="card", host=SPARE_CARD)
    with closing(guest):
        found = {each.reason: each.what for each in guest.blockers()}
    assert found.keys() - {"qemu"} == {"vfio", "not-in-shape"}
    assert "card (vfio-pci)" in found["vfio"]
