"""What keeps a virtual machine from being moved: facts of its QEMU and of the two hosts → blockers. Pure.

One row for each kind of blocker: its word, what finds it among the facts, and what to do about it. Most are writers to
guest memory that no page table sees (a device, another process, a pinned buffer): followed from outside, such a guest
would arrive with old pages and nobody would know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, TypeVar

from workers.guests.blocker import Blocker
from workers.guests.qemu.needs import FileIdentity

#: What QEMU must be able to do; without the first it would send the RAM itself.
NEEDED_CAPABILITIES = ("x-ignore-shared", "events", "late-block-activate")

#: Filesystems of one machine: another machine that has the same path has another file there.
LOCAL_FILESYSTEMS = frozenset(
    {
        "bcachefs",
        "btrfs",
        "devtmpfs",
        "erofs",
        "exfat",
        "ext2",
        "ext3",
        "ext4",
        "f2fs",
        "hugetlbfs",
        "jfs",
        "minix",
        "msdos",
        "nilfs2",
        "ntfs",
        "ntfs3",
        "overlay",
        "ramfs",
        "reiserfs",
        "rootfs",
        "squashfs",
        "tmpfs",
        "ubifs",
        "udf",
        "vfat",
        "xfs",
        "zfs",
    }
)

_PASSED_THROUGH = ("vfio-", "vfio_")
_REGISTERS_BUFFERS = frozenset({"io_uring", "nvme-io_uring", "virtio-blk-vfio-pci", "virtio-blk-vhost-user"}) | {
    "virtio-blk-vhost-vdpa"
}
#: States of a migration that somebody has begun and that has not ended.
_UNDER_WAY = frozenset(
    {
        "setup",
        "wait-unplug",
        "active",
        "pre-switchover",
        "device",
        "colo",
        "postcopy-active",
        "postcopy-paused",
        "postcopy-recover",
        "cancelling",
    }
)
#: Run states in which the guest runs elsewhere, or is about to, or came from there and is not whole yet.
_ELSEWHERE = frozenset({"inmigrate", "finish-migrate", "postmigrate", "colo"})
_CONFIDENTIAL = frozenset({"sev-guest", "sev-snp-guest", "tdx-guest"})


class Reason(StrEnum):
    """Stable words, for scripts and for the history."""

    VFIO = "vfio"
    VDPA = "vdpa"
    VHOST_USER = "vhost-user"
    RDMA_DEVICE = "rdma-device"
    CONFIDENTIAL = "confidential"
    NVME_DRIVER = "nvme-driver"
    REGISTERED_BUFFERS = "registered-buffers"
    RAM_NOT_SHARED = "ram-not-shared"
    MORE_MEMORY = "more-memory"
    VIRTIO_MEM_MOVING = "virtio-mem-moving"
    BALLOON_MOVING = "balloon-moving"
    NOT_IN_SHAPE = "not-in-shape"
    LOCAL_DISK = "local-disk"
    FILE = "file"
    NO_IGNORE_SHARED = "no-ignore-shared"
    MONITOR_HELD = "monitor-held"
    MIGRATING = "migrating"
    QEMU = "qemu"
    NO_QEMU = "no-qemu"
    ACCELERATOR = "accelerator"
    MACHINE_TYPE = "machine-type"
    CPU_MODEL = "cpu-model"
    TAP = "tap"
    MALFORMED = "malformed"


@dataclass(frozen=True, slots=True)
class Named:
    """Something that QEMU has: its id (or path, where it has none), and its type in QEMU's words."""

    name: str
    kind: str


@dataclass(frozen=True, slots=True)
class Backend:
    """A memory backend. Shapes: `size` bytes; `path` empty when there is no named file behind it."""

    name: str
    kind: str
    share: bool
    size: int
    path: str = ""


@dataclass(frozen=True, slots=True)
class MemoryDevice:
    """Memory that was plugged in. `requested` differs from `size` while a virtio-mem device is in motion; bytes."""

    name: str
    kind: str
    size: int
    requested: int


@dataclass(frozen=True, slots=True)
class Image:
    """What a disk is of: the file at the top of its block nodes, and how that is opened."""

    path: str
    format: str
    read_only: bool

    def __str__(self) -> str:
        return f"{self.path} ({self.format}{', read-only' if self.read_only else ''})"


@dataclass(frozen=True, slots=True)
class Plugged:
    """What is plugged into a machine, or is to be: how many devices of each type; disks and cards by their address."""

    kinds: Mapping[str, int]
    #: None: a disk without an image.
    disks: tuple[Image | None, ...] = ()
    macs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """What one QEMU says of itself, and what the kernel says of its process. Sizes in bytes."""

    memory: int
    #: The id of the backend that is the machine's memory.
    ram_id: str
    backends: tuple[Backend, ...] = ()
    #: How much of that backend's file the process has mapped shared and writable.
    mapped: int = 0
    devices: tuple[Named, ...] = ()
    objects: tuple[Named, ...] = ()
    nets: tuple[Named, ...] = ()
    #: Block nodes, their driver as kind.
    nodes: tuple[Named, ...] = ()
    #: Files under /dev that the process has open, by path.
    open_devices: frozenset[str] = frozenset()
    memory_devices: tuple[MemoryDevice, ...] = ()
    #: The balloon's size at each of a few looks; empty without a balloon.
    balloon: tuple[int, ...] = ()
    #: None: QEMU does not know the question.
    capabilities: frozenset[str] | None = frozenset()
    blocked_reasons: tuple[str, ...] = ()
    monitor_problem: str = ""
    #: The state of its last migration, of whoever's; empty when there was none.
    migration: str = ""
    run_state: str = "running"
    plugged: Plugged = Plugged({})
    #: What the guest's own shape has; None: it has none to compare with.
    shape: Plugged | None = None


@dataclass(frozen=True, slots=True)
class FilePair:
    """A file that the guest needs: what the source says of it, and what the destination finds, or why it does not."""

    path: str
    #: A disk is written by the guest, or read for as long as it lives; the others are read once.
    disk: bool
    theirs: FileIdentity | None
    ours: FileIdentity | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class DestinationFacts:
    """What a destination has of what a described guest needs."""

    machine: str
    cpu: str
    accel: str
    #: Why QEMU could not be asked; nothing below is known then but files and taps.
    qemu_problem: str = ""
    accel_problem: str = ""
    machines: frozenset[str] = frozenset()
    cpu_models: frozenset[str] = frozenset()
    #: Processor features that the guest has at the source, and all that this host can give.
    features_wanted: frozenset[str] = frozenset()
    features: frozenset[str] = frozenset()
    capabilities: frozenset[str] | None = frozenset()
    files: tuple[FilePair, ...] = ()
    #: Tap device → what is wrong with it.
    tap_problems: Mapping[str, str] = field(default_factory=dict)


_Facts = TypeVar("_Facts")


@dataclass(frozen=True, slots=True)
class _Row(Generic[_Facts]):
    """`find` names each thing found."""

    reason: Reason
    find: Callable[[_Facts], Iterator[str]]
    remedy: str
    #: QEMU's own migration sees such writers, and such memory.
    from_outside: bool = False


def blockers_at_source(facts: SourceFacts) -> list[Blocker]:
    """Everything that keeps this QEMU's guest from leaving, in the order of the table."""
    return _judged(_AT_SOURCE, facts)


def blockers_at_destination(facts: DestinationFacts) -> list[Blocker]:
    """Everything that keeps the described guest from coming, in the order of the table."""
    return _judged(_AT_DESTINATION, facts)


def _judged(table: tuple[_Row[_Facts], ...], facts: _Facts) -> list[Blocker]:
    return [Blocker(row.reason.value, what, row.remedy, row.from_outside) for row in table for what in row.find(facts)]


# --- at the source ----------------------------------------------------------------------------------------------------


def _of_type(what: str, fits: Callable[[str], bool]) -> Callable[[SourceFacts], Iterator[str]]:
    """Devices, objects and network back-ends whose type fits."""

    def find(facts: SourceFacts) -> Iterator[str]:
        for each in (*facts.devices, *facts.objects, *facts.nets):
            if fits(each.kind):
                yield f"{what} {each.name} ({each.kind})"

    return find


def _opened(what: str, start: str) -> Callable[[SourceFacts], Iterator[str]]:
    """What no device of QEMU's owns up to, but the process has open."""

    def find(facts: SourceFacts) -> Iterator[str]:
        for path in sorted(facts.open_devices):
            if path.startswith(start):
                yield f"{what} {path} is open in QEMU"

    return find


def _first_that_finds(*finders: Callable[[SourceFacts], Iterator[str]]) -> Callable[[SourceFacts], Iterator[str]]:
    """One thing is named once, by whoever names it best."""

    def find(facts: SourceFacts) -> Iterator[str]:
        for finder in finders:
            if found := list(finder(facts)):
                yield from found
                return

    return find


def _nodes(what: str, fits: Callable[[str], bool]) -> Callable[[SourceFacts], Iterator[str]]:
    def find(facts: SourceFacts) -> Iterator[str]:
        for node in facts.nodes:
            if fits(node.kind):
                yield f"{what} {node.name} ({node.kind})"

    return find


def _ram_not_shared(facts: SourceFacts) -> Iterator[str]:
    backend = next((each for each in facts.backends if each.name == facts.ram_id), None)
    if backend is None:
        yield "its memory belongs to no memory backend of a name"
    elif backend.kind != "memory-backend-file":
        yield f"its memory {backend.name} is a {backend.kind}"
    elif not backend.share:
        yield f"its memory {backend.name} in {backend.path} is private to QEMU (share=off)"
    elif facts.mapped != facts.memory:
        yield f"{facts.mapped} of its {facts.memory} bytes of memory are a shared mapping of {backend.path or 'a file'}"


def _more_memory(facts: SourceFacts) -> Iterator[str]:
    """With x-ignore-shared QEMU leaves out every shared backend, and we move one."""
    for each in facts.backends:
        if each.name != facts.ram_id:
            yield f"the memory backend {each.name} of {each.size} bytes beside its memory"


def _virtio_mem_moving(facts: SourceFacts) -> Iterator[str]:
    for each in facts.memory_devices:
        if each.size != each.requested:
            yield f"the memory device {each.name} has {each.size} bytes and is to have {each.requested}"


def _balloon_moving(facts: SourceFacts) -> Iterator[str]:
    if len(set(facts.balloon)) > 1:
        yield f"the balloon went from {facts.balloon[0]} to {facts.balloon[-1]} bytes while it was looked at"


def _not_in_shape(facts: SourceFacts) -> Iterator[str]:
    """What was plugged in, taken out or exchanged since: the destination would start the machine of the shape.

    Of an exchanged disk nobody would see an error: the guest would go on from another file's contents.
    """
    if facts.shape is None:
        return
    there, shape = facts.plugged, facts.shape
    for kind in sorted(there.kinds.keys() | shape.kinds.keys()):
        has, had = there.kinds.get(kind, 0), shape.kinds.get(kind, 0)
        if has != had:
            yield f"it has {has} devices of type {kind}, its shape {had}"
    # Where there are more on one side, that is said above.
    for number, (image, said) in enumerate(zip(there.disks, shape.disks, strict=False)):
        if image != said:
            yield f"its disk {number} is {image or 'without an image'}, its shape says {said}"
    for number, (mac, its) in enumerate(zip(there.macs, shape.macs, strict=False)):
        if mac != its:
            yield f"its card {number} is {mac}, its shape says {its}"


def _lacks_capabilities(facts: SourceFacts | DestinationFacts) -> Iterator[str]:
    if isinstance(facts, DestinationFacts) and facts.qemu_problem:
        return
    lacking = [name for name in NEEDED_CAPABILITIES if name not in (facts.capabilities or ())]
    if lacking:
        yield f"this host's QEMU of the guest lacks {', '.join(lacking)}"


def _monitor_held(facts: SourceFacts) -> Iterator[str]:
    if facts.monitor_problem:
        yield facts.monitor_problem


def _migrating(facts: SourceFacts) -> Iterator[str]:
    """Ours would be refused, and what we do about that would cancel theirs, or run the guest a second time."""
    if facts.migration in _UNDER_WAY:
        yield f"somebody migrates it by its monitor already ({facts.migration})"
    elif facts.run_state in _ELSEWHERE:
        yield f"its QEMU is one end of somebody's migration ({facts.run_state}): the guest may run elsewhere"


def _qemus_own(facts: SourceFacts) -> Iterator[str]:
    for reason in facts.blocked_reasons:
        yield f"QEMU says: {reason}"


_UNPLUG = "unplug it before the move, and plug one of the destination in afterwards"
_IN_KERNEL = "give the guest a device that QEMU emulates (virtio-net with tap, virtio-blk) instead"
_OTHER_DISK = "attach the disk by a driver that goes through the kernel (file, host_device)"

_AT_SOURCE: tuple[_Row[SourceFacts], ...] = (
    _Row(
        Reason.VFIO,
        _first_that_finds(
            _of_type("the passed-through device", lambda kind: kind.startswith(_PASSED_THROUGH)),
            _opened("the passed-through device group", "/dev/vfio/"),
        ),
        f"it writes guest memory past all page tables: {_UNPLUG}",
    ),
    _Row(
        Reason.VDPA,
        _first_that_finds(
            _of_type("the vDPA device", lambda kind: "vhost-vdpa" in kind),
            _opened("the vDPA device", "/dev/vhost-vdpa"),
        ),
        f"it writes guest memory past all page tables: {_UNPLUG}",
    ),
    _Row(
        Reason.VHOST_USER,
        _of_type("the vhost-user back-end of", lambda kind: "vhost-user" in kind),
        f"another process writes guest memory through a mapping of its own: {_IN_KERNEL}",
        from_outside=True,
    ),
    _Row(
        Reason.RDMA_DEVICE,
        _of_type("the RDMA device", lambda kind: kind == "pvrdma"),
        f"it registers guest memory with a device: {_UNPLUG}",
    ),
    _Row(
        Reason.CONFIDENTIAL,
        _of_type("the guest's memory is encrypted by", lambda kind: kind in _CONFIDENTIAL),
        "what is read from outside means nothing elsewhere: stop the guest, and start it on the other host",
    ),
    _Row(
        Reason.NVME_DRIVER,
        _nodes("the disk node", lambda kind: kind == "nvme"),
        f"nvme:// lets the controller write guest memory by itself: {_OTHER_DISK}",
    ),
    _Row(
        Reason.REGISTERED_BUFFERS,
        _nodes("the disk node", lambda kind: kind in _REGISTERS_BUFFERS),
        f"its driver registers guest memory as buffers and writes past the page tables: {_OTHER_DISK}",
        from_outside=True,
    ),
    _Row(
        Reason.RAM_NOT_SHARED,
        _ram_not_shared,
        "start the guest anew with all of its memory in one memory-backend-file, share=on",
        from_outside=True,
    ),
    _Row(
        Reason.MORE_MEMORY,
        _more_memory,
        "only a guest whose memory is one file can be moved: unplug it (device_del, object-del)",
        from_outside=True,
    ),
    _Row(
        Reason.VIRTIO_MEM_MOVING,
        _virtio_mem_moving,
        "wait until the guest has it, or set requested-size back to size",
        from_outside=True,
    ),
    _Row(
        Reason.BALLOON_MOVING,
        _balloon_moving,
        "wait until the guest has reached the size that was asked for",
        from_outside=True,
    ),
    _Row(
        Reason.NOT_IN_SHAPE,
        _not_in_shape,
        "the destination starts what its shape says: undo what was plugged in, taken out or exchanged",
    ),
    _Row(
        Reason.NO_IGNORE_SHARED, _lacks_capabilities, "start the guest anew with QEMU 6.0 or later", from_outside=True
    ),
    _Row(Reason.MONITOR_HELD, _monitor_held, "end what is connected to it, or wait for the migration that has it"),
    _Row(
        Reason.MIGRATING,
        _migrating,
        "let whoever began that end or cancel it (migrate_cancel); what a dead mover left, `droveway reconcile` ends",
    ),
    _Row(Reason.QEMU, _qemus_own, "take away what QEMU names"),
)


# --- at the destination -----------------------------------------------------------------------------------------------


def _no_qemu(facts: DestinationFacts) -> Iterator[str]:
    if facts.qemu_problem:
        yield facts.qemu_problem


def _no_accelerator(facts: DestinationFacts) -> Iterator[str]:
    if facts.accel_problem:
        yield f"the guest needs accel={facts.accel}, {facts.accel_problem}"


def _no_machine_type(facts: DestinationFacts) -> Iterator[str]:
    if not facts.qemu_problem and facts.machine not in facts.machines:
        yield f"QEMU here does not know the machine type {facts.machine}"


def _no_cpu_model(facts: DestinationFacts) -> Iterator[str]:
    if facts.qemu_problem:
        return
    model = facts.cpu.partition(",")[0]
    if model not in facts.cpu_models:
        yield f"QEMU here does not know the processor model {model}"
    elif lacking := sorted(facts.features_wanted - facts.features):
        yield f"the guest's processor ({model}) has {', '.join(lacking)}, which this host cannot give"


def _local_disks(facts: DestinationFacts) -> Iterator[str]:
    for pair in facts.files:
        if pair.disk and pair.theirs and pair.ours and (why := another_file(pair.theirs, pair.ours)):
            yield f"the disk {pair.path} {why}"


def _files(facts: DestinationFacts) -> Iterator[str]:
    for pair in facts.files:
        if pair.problem:
            yield f"{pair.path} {pair.problem}"
        elif not pair.disk and pair.theirs and pair.ours and pair.theirs.digest != pair.ours.digest:
            yield f"{pair.path} has other contents here than at the source"


def _taps(facts: DestinationFacts) -> Iterator[str]:
    for name, problem in sorted(facts.tap_problems.items()):
        yield f"the tap device {name} {problem}"


def another_file(theirs: FileIdentity, ours: FileIdentity) -> str:
    """Why these two, of one path on two hosts, are not the same file; empty when they are, or it cannot be told.

    Kernel and inode tell on one machine. Between machines: a filesystem of one machine cannot be shared, on the others
    the server's inode number is the same everywhere; a block device tells by its serial number, when it has one.
    """
    if theirs.block != ours.block:
        return "is a block device on one host and a file on the other"
    if theirs.machine == ours.machine:
        return _another_if((theirs.device, theirs.inode) != (ours.device, ours.inode))
    if theirs.size != ours.size:
        return f"has {ours.size} bytes here and {theirs.size} at the source"
    return _another_device(theirs, ours) if theirs.block else _another_on_another_machine(theirs, ours)


def _another_if(differs: bool) -> str:
    return "is another file here than at the source" if differs else ""


def _another_device(theirs: FileIdentity, ours: FileIdentity) -> str:
    if theirs.serial.startswith("loop") or ours.serial.startswith("loop"):
        return "is a loop device, over a file of one host"
    return "is another device here than at the source" if theirs.serial != ours.serial else ""


def _another_on_another_machine(theirs: FileIdentity, ours: FileIdentity) -> str:
    for side, where in ((theirs, "at the source"), (ours, "here")):
        if side.filesystem in LOCAL_FILESYSTEMS:
            return f"lies on {side.filesystem} {where}, which no other machine shares"
    return _another_if((theirs.filesystem, theirs.inode) != (ours.filesystem, ours.inode))


_AT_DESTINATION: tuple[_Row[DestinationFacts], ...] = (
    _Row(Reason.NO_QEMU, _no_qemu, "install QEMU on this host, or repair it (Debian: apt install qemu-system-x86)"),
    _Row(
        Reason.ACCELERATOR,
        _no_accelerator,
        "switch virtualisation on in this host's firmware and give this user /dev/kvm, or go elsewhere",
    ),
    _Row(Reason.MACHINE_TYPE, _no_machine_type, "upgrade QEMU on this host, or go elsewhere"),
    _Row(
        Reason.CPU_MODEL,
        _no_cpu_model,
        "go to a host that can, or start the guest with a cpu model that all hosts can give",
    ),
    _Row(Reason.NO_IGNORE_SHARED, _lacks_capabilities, "upgrade QEMU on this host to 6.0 or later", from_outside=True),
    _Row(Reason.LOCAL_DISK, _local_disks, "put it on storage that both hosts reach: Droveway moves no disks"),
    _Row(Reason.FILE, _files, "make it there, under the same path, for the user of the workers"),
    _Row(Reason.TAP, _taps, "make it on this host (ip tuntap add mode tap), or go elsewhere"),
)
