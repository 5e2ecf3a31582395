"""The judgement alone: facts → blockers. What needs hardware that no test machine has is here in QEMU's own words.

The words of vfio, vdpa, nvme:// and the drivers with registered buffers are those of QEMU's source (type names, netdev
and block driver names), which a machine without such hardware cannot be made to say.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from config.errors import RefusedError, RequestError
from workers.guests.blocker import Blocker, read_blockers, refuse_blocked
from workers.guests.qemu.blockers import (
    NEEDED_CAPABILITIES,
    Backend,
    DestinationFacts,
    FilePair,
    Image,
    MemoryDevice,
    Named,
    Plugged,
    Reason,
    SourceFacts,
    another_file,
    blockers_at_destination,
    blockers_at_source,
)
from workers.guests.qemu.likeness import Likeness, devices_in, differences
from workers.guests.qemu.needs import FileIdentity, Needs

GIB = 1 << 30
DISK = Image("/srv/disk", "qcow2", False)
SHAPE = Plugged({"virtio-blk-pci": 1, "virtio-net-pci": 1}, (DISK,), ("52:54:00:00:00:01",))
SOUND = SourceFacts(
    memory=GIB,
    ram_id="ram",
    backends=(Backend("ram", "memory-backend-file", True, GIB, "/dev/shm/ram"),),
    mapped=GIB,
    devices=(Named("virtio-disk0", "virtio-blk-pci"), Named("virtio-net0", "virtio-net-pci")),
    nets=(Named("net0", "tap"),),
    nodes=(Named("disk0", "qcow2"), Named("#block1", "file")),
    open_devices=frozenset({"/dev/net/tun", "/dev/kvm"}),
    capabilities=frozenset(NEEDED_CAPABILITIES),
    plugged=SHAPE,
    shape=SHAPE,
)
FILE = FileIdentity(path="/srv/disk", machine="boot-a", filesystem="nfs4", device=40, inode=7, size=GIB)
FITS = DestinationFacts(
    machine="pc-q35-7.2",
    cpu="EPYC,+avx",
    accel="kvm",
    machines=frozenset({"q35", "pc-q35-7.2"}),
    cpu_models=frozenset({"EPYC", "max"}),
    features_wanted=frozenset({"sse2"}),
    features=frozenset({"sse2", "avx"}),
    capabilities=frozenset(NEEDED_CAPABILITIES),
    files=(FilePair("/srv/disk", True, FILE, FILE.model_copy(update={"machine": "boot-b", "device": 50})),),
)


def at_source(**facts: Any) -> list[str]:
    return [each.reason for each in blockers_at_source(replace(SOUND, **facts))]


def at_destination(**facts: Any) -> list[str]:
    return [each.reason for each in blockers_at_destination(replace(FITS, **facts))]


def test_nothing_is_in_the_way_of_what_can_move() -> None:
    assert at_source() == []
    assert at_destination() == []


@pytest.mark.parametrize(
    ("there", "says"),
    [
        ({"kinds": {**SHAPE.kinds, "virtio-rng-pci": 1}}, "1 devices of type virtio-rng-pci, its shape 0"),
        ({"kinds": {"virtio-blk-pci": 1}, "macs": ()}, "0 devices of type virtio-net-pci, its shape 1"),
        (
            {"disks": (replace(DISK, path="/srv/snap"),)},
            "disk 0 is /srv/snap (qcow2), its shape says /srv/disk (qcow2)",
        ),
        ({"disks": (replace(DISK, format="raw"),)}, "disk 0 is /srv/disk (raw), its shape says /srv/disk (qcow2)"),
        ({"disks": (replace(DISK, read_only=True),)}, "disk 0 is /srv/disk (qcow2, read-only), its shape says"),
        ({"disks": (None,)}, "disk 0 is without an image, its shape says /srv/disk"),
        ({"macs": ("52:54:00:00:00:02",)}, "card 0 is 52:54:00:00:00:02, its shape says 52:54:00:00:00:01"),
    ],
)
def test_what_is_not_in_its_shape_any_more(there: dict[str, Any], says: str) -> None:
    changed = replace(SOUND, plugged=replace(SHAPE, **there))
    (blocker,) = blockers_at_source(changed)
    assert blocker.reason == "not-in-shape"
    assert says in blocker.what
    assert blockers_at_source(replace(changed, shape=None)) == []


@pytest.mark.parametrize("kind", ["vfio-pci", "vfio-pci-nohotplug", "vfio-ap", "vfio-user-pci"])
def test_vfio(kind: str) -> None:
    both = {"devices": (*SOUND.devices, Named("gpu", kind)), "open_devices": frozenset({"/dev/vfio/vfio"})}
    assert at_source(**both, shape=None) == ["vfio"]
    assert at_source(open_devices=frozenset({"/dev/vfio/17"})) == ["vfio"]


@pytest.mark.parametrize("kind", ["vhost-vdpa-device-pci", "vhost-vdpa"])
def test_vdpa(kind: str) -> None:
    assert at_source(nets=(Named("net0", kind),)) == ["vdpa"]
    assert at_source(open_devices=frozenset({"/dev/vhost-vdpa-0"})) == ["vdpa"]


@pytest.mark.parametrize("kind", ["vhost-user-blk-pci", "vhost-user-fs-pci", "vhost-user-vsock-pci"])
def test_vhost_user(kind: str) -> None:
    assert at_source(devices=(*SOUND.devices, Named("fs", kind)), shape=None) == ["vhost-user"]
    assert at_source(nets=(Named("net0", "vhost-user"),)) == ["vhost-user"]
    assert at_source(objects=(Named("crypto", "cryptodev-vhost-user"),)) == ["vhost-user"]


def test_nvme_driver_is_not_the_nvme_device() -> None:
    assert at_source(nodes=(Named("disk0", "raw"), Named("#block1", "nvme"))) == ["nvme-driver"]


@pytest.mark.parametrize(
    "driver", ["io_uring", "nvme-io_uring", "virtio-blk-vfio-pci", "virtio-blk-vhost-user", "virtio-blk-vhost-vdpa"]
)
def test_registered_buffers(driver: str) -> None:
    assert at_source(nodes=(Named("disk0", driver),)) == ["registered-buffers"]


def test_encrypted_memory_and_an_rdma_device() -> None:
    assert at_source(objects=(Named("sev0", "sev-guest"),)) == ["confidential"]
    assert at_source(devices=(*SOUND.devices, Named("r", "pvrdma")), shape=None) == ["rdma-device"]


def test_memory_that_is_no_shared_file() -> None:
    (ram,) = SOUND.backends
    for wrong in (
        {"backends": ()},
        {"backends": (replace(ram, share=False),)},
        {"backends": (replace(ram, kind="memory-backend-memfd", path=""),)},
        {"mapped": 0},
        {"mapped": GIB // 2},
        {"ram_id": ""},
    ):
        assert "ram-not-shared" in at_source(**wrong)


def test_a_memory_device_at_rest_is_only_more_memory() -> None:
    more = (*SOUND.backends, Backend("more", "memory-backend-ram", False, GIB))
    assert at_source(backends=more, memory_devices=(MemoryDevice("m", "virtio-mem", GIB, GIB),)) == ["more-memory"]
    assert at_source(memory_devices=(MemoryDevice("m", "virtio-mem", 0, GIB),)) == ["virtio-mem-moving"]


@pytest.mark.parametrize("run_state", ["inmigrate", "finish-migrate", "postmigrate"])
def test_one_end_of_somebody_elses_migration(run_state: str) -> None:
    for status in ("setup", "active", "pre-switchover", "device", "postcopy-active", "cancelling", "wait-unplug"):
        assert at_source(migration=status) == ["migrating"]
        assert at_source(migration=status, run_state=run_state) == ["migrating"]
    for status in ("", "none", "completed", "failed", "cancelled"):
        assert at_source(migration=status, run_state=run_state) == ["migrating"]
        assert at_source(migration=status) == at_source(migration=status, run_state="paused") == []


def test_a_balloon() -> None:
    assert at_source(balloon=(GIB, GIB)) == []
    assert at_source(balloon=(GIB, GIB - 4096)) == ["balloon-moving"]


def test_an_older_qemu_lacks_what_is_needed() -> None:
    """No such binary is at hand: this is what one before 4.0 answers, and one that does not know the question."""
    for known in (frozenset({"events", "xbzrle"}), None):
        assert at_source(capabilities=known) == ["no-ignore-shared"]
        assert at_destination(capabilities=known) == ["no-ignore-shared"]


def test_all_that_is_in_the_way_is_said_in_one_sentence() -> None:
    blockers = blockers_at_source(replace(SOUND, mapped=0, monitor_problem="it is held", blocked_reasons=("a", "b")))
    assert [each.reason for each in blockers] == ["ram-not-shared", "monitor-held", "qemu", "qemu"]
    with pytest.raises(RefusedError) as raised:
        refuse_blocked("web", "alpha", blockers)
    assert raised.value.reason == "blocked"
    assert all(str(each) in str(raised.value) for each in blockers)
    refuse_blocked("web", "alpha", [])


def test_a_destination_that_has_nothing() -> None:
    nothing = {"qemu_problem": "qemu is not installed", "accel_problem": "and /dev/kvm is missing"}
    assert at_destination(**nothing, machines=frozenset(), cpu_models=frozenset(), capabilities=None) == [
        "no-qemu",
        "accelerator",
    ]
    assert at_destination(machines=frozenset({"pc"})) == ["machine-type"]
    assert at_destination(cpu="Unknown") == ["cpu-model"]
    assert at_destination(features=frozenset({"avx"})) == ["cpu-model"]
    assert at_destination(tap_problems={"tap0": "is not on this host"}) == ["tap"]
    assert at_destination(files=(FilePair("/boot/linux", False, None, None, "cannot be looked at"),)) == ["file"]


@pytest.mark.parametrize(
    ("theirs", "ours", "says"),
    [
        ({}, {"machine": "boot-b", "device": 99}, ""),
        ({}, {"machine": "boot-b", "inode": 8}, "another file"),
        ({}, {"machine": "boot-b", "size": 1}, "1 bytes here"),
        ({}, {"machine": "boot-b", "filesystem": "ext4"}, "ext4 here"),
        ({"filesystem": "xfs"}, {"machine": "boot-b", "filesystem": "xfs"}, "xfs at the source"),
        ({"filesystem": "ext4"}, {"filesystem": "ext4"}, ""),
        ({}, {"inode": 8}, "another file"),
        ({"block": True}, {"machine": "boot-b"}, "block device on one host"),
        ({"block": True, "serial": "naa.1"}, {"block": True, "serial": "naa.1", "machine": "boot-b"}, ""),
        ({"block": True, "serial": "naa.1"}, {"block": True, "serial": "naa.2", "machine": "boot-b"}, "another device"),
        ({"block": True, "serial": "loop 7:0"}, {"block": True, "serial": "loop 7:0", "machine": "boot-b"}, "loop"),
        ({"block": True}, {"block": True, "machine": "boot-b"}, ""),
    ],
)
def test_whether_two_are_one_file(theirs: dict[str, Any], ours: dict[str, Any], says: str) -> None:
    found = another_file(FILE.model_copy(update=theirs), FILE.model_copy(update=ours))
    assert says in found
    assert bool(found) == bool(says)


def test_what_travels_is_read_back_and_what_is_malformed_is_refused() -> None:
    needs = Needs(files=(FILE,), features=("sse2",))
    assert Needs.from_json(needs.to_json()) == needs
    assert Needs.from_json(None) == Needs()
    for wrong in ([], {"files": 1}, {"files": [{"path": "/x"}]}, {"features": ["x" * 65]}, {"files": [{}] * 257}):
        with pytest.raises(RequestError, match="malformed"):
            Needs.from_json(wrong)
    blockers = [Blocker("vfio", "a", "b")]
    assert read_blockers([each.to_json() for each in blockers]) == blockers
    for said in (None, {}, [1], [{"reason": "vfio"}], [{"reason": 1, "what": "", "remedy": ""}]):
        with pytest.raises(ValueError, match=r"blocker|list"):
            read_blockers(said)


def test_every_word_is_one_of_a_kind() -> None:
    assert len({reason.value for reason in Reason}) == len(Reason)


TREE = """bus: main-system-bus
  type System
  dev: q35-pcihost, id ""
    MCFG = 2952790016 (0xb0000000)
    bus: pcie.0
      type PCIE
      dev: virtio-blk-pci, id "{id}"
        addr = {addr}
        write-cache = {cache}
        drive = "{drive}"
        class SCSI controller, addr 00:03.0, pci id 1af4:1001 (sub 1af4:0002)
        bar 0: i/o at {bar} [0x7e]
        bus: virtio-bus
          type virtio-pci-bus
          dev: virtio-blk-device, id ""
            num-queues = {queues} (0x1)
"""
OURS = {"id": "virtio-disk0", "addr": "02.0", "drive": "disk0", "bar": "0xffff", "cache": '"on"', "queues": 1}


def test_two_machines_are_one_but_for_what_is_the_hosts_and_the_guests() -> None:
    def unlike(**theirs: Any) -> list[str]:
        ours, others = (devices_in(TREE.format(**(OURS | changed))) for changed in ({}, theirs))
        return differences(Likeness(others), Likeness(ours))

    assert unlike(id="", drive="d", bar="0xc000", cache='"auto"') == []
    (more,) = unlike(queues=4)
    assert more.startswith("virtio-blk-device on main-system-bus/q35-pcihost/pcie.0/virtio-blk-pci/virtio-bus: ")
    assert more.endswith("num-queues is 4 (0x1), ours would be 1 (0x1)")
    moved = unlike(addr="05.0")
    assert any("at 05.0 is there, ours would have none" in each for each in moved)
    assert any("at 02.0 is missing" in each for each in moved)
    assert unlike(cache='"off"') != []
