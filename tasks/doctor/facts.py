"""What is looked at on a host. Plain values: sizes in bytes, times in seconds. An empty `problem` means: none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Kernel:
    """`trackers`: kind → why it does not work here, "" when it does, best first. `traces`: may look into processes."""

    release: str
    trackers: Mapping[str, str]
    root: bool
    traces: bool


@dataclass(frozen=True, slots=True)
class Rdma:
    """`ports`: each with its state. `chosen`: the port and address that would be used; else `problem`."""

    ports: Mapping[str, str] = field(default_factory=dict)
    library_problem: str = ""
    chosen: str = ""
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Memory:
    """None: no limit. `set_by_hand`: host.memory is set."""

    total: int
    offered: int
    set_by_hand: bool
    lockable: int | None
    cgroup: int | None


@dataclass(frozen=True, slots=True)
class Directory:
    """Where a directory is, or would be made. `filesystem`: the type of what it lies on.

    `synced`: for one small write to be on the disk, the median of some; None: not tried.
    """

    path: str
    filesystem: str
    size: int
    free: int
    problem: str = ""
    synced: float | None = None


@dataclass(frozen=True, slots=True)
class Ports:
    """Of the data path: how many there are and could be had; and the pages' ports that somebody else has."""

    address: str
    first: int
    last: int
    free: int
    wanted: int
    pages_taken: tuple[int, ...] = ()
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Redis:
    """What the server says; None: it does not tell us. `lacking`: commands that our user may not give.

    `offset`: its clock less ours; `round_trip`: of that question.
    """

    url: str
    tls: bool
    local: bool
    problem: str = ""
    version: str = ""
    log: bool | None = None
    log_failed: bool = False
    sync: str | None = None
    eviction: str | None = None
    used: int = 0
    limit: int = 0
    lacking: tuple[str, ...] = ()
    offset: float = 0.0
    round_trip: float = 0.0


@dataclass(frozen=True, slots=True)
class Release:
    """`fleet`: host → its release and wire version; None: the record could not be read."""

    version: str
    wire: int
    fleet: Mapping[str, tuple[str, int]] | None
    #: Roles whose worker runs on this host.
    running: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Certificate:
    """One of ours. `problem`: why it could not be used at all, unreadable files and foreign keys among it."""

    purpose: str
    path: str
    problem: str = ""
    names: tuple[str, ...] = ()
    since: datetime | None = None
    until: datetime | None = None
    #: Of the one who vouches for it.
    ca_until: datetime | None = None
    #: Permissions of the key's file.
    key_mode: int = 0o600


@dataclass(frozen=True, slots=True)
class Qemu:
    """`problem`: it cannot be asked. `lacks`: capabilities that moving its guests takes."""

    binary: str
    installed: bool
    version: str = ""
    problem: str = ""
    kvm_problem: str = ""
    lacks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything, at one moment (`now`)."""

    host: str
    now: datetime
    address_is_loopback: bool
    kernel: Kernel
    rdma: Rdma
    rdma_is_set: bool
    memory: Memory
    state: Directory
    ram: Directory
    ports: Ports
    redis: Redis
    release: Release
    certificates: tuple[Certificate, ...]
    qemu: Qemu
