"""How much memory this process may still lock, and this host still take up: what a preflight needs to know."""

from __future__ import annotations

import resource
from dataclasses import dataclass
from pathlib import Path

from workers.ram import available_memory

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")
_CAP_IPC_LOCK = 14
#: cgroup v1 writes "no limit" as the largest whole number of pages in 63 bits.
_NO_LIMIT = 1 << 62


@dataclass(frozen=True, slots=True)
class LockLimits:
    """Head room in bytes; None: nothing binds, or nobody knows.

    `memlock` binds what is locked on either side: over RDMA what is registered, over tcp only under `rdma-pin-all`.
    `cgroup` and `available` bind memory that is yet to be populated: the destination's, and not that of a guest that
    exists.
    """

    memlock: int | None = None
    cgroup: int | None = None
    available: int | None = None


def lock_limits() -> LockLimits:
    """This process's head room now."""
    limit, held = lock_limit(), max(locked_memory(), pinned_memory())
    return LockLimits(
        memlock=None if limit is None else max(0, limit - held),
        cgroup=cgroup_headroom(),
        available=available_memory(),
    )


def lock_limit() -> int | None:
    """RLIMIT_MEMLOCK in bytes; None when it does not bind us (unlimited, or CAP_IPC_LOCK)."""
    soft = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    return None if capable(_CAP_IPC_LOCK) or soft == resource.RLIM_INFINITY else soft


def capable(capability: int) -> bool:
    """Whether this process has a capability (its number in linux/capability.h) in effect."""
    return bool(int(_status("CapEff"), 16) >> capability & 1)


def locked_memory() -> int:
    """Bytes that this process locked by mlock."""
    return _kib("VmLck")


def pinned_memory() -> int:
    """Bytes pinned for devices; the kernel holds them against the same limit, but does not add them to the locked."""
    return _kib("VmPin")


def cgroup_headroom(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> int | None:
    """Bytes that this process's memory cgroup, and each one above it, may still grow by; None without a limit.

    Memory of a RAM file is charged to whoever touches a page first. Page cache is given up before the limit refuses,
    so it does not count as used.
    """
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
    except OSError:  # a kernel without cgroups
        return None
    rooms = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root, names = cgroups, ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            root, names = cgroups / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        # In a container the path may be the host's, while the mount begins at the container's own cgroup: what is not
        # there is passed over, and the mount's root is looked at always.
        parts = [part for part in path.split("/") if part not in ("", "..")]
        chain = (root.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1))
        rooms += [room for directory in chain if (room := _room(directory, *names)) is not None]
    return min(rooms, default=None)


def _room(directory: Path, limit_name: str, usage_name: str) -> int | None:
    try:
        limit = (directory / limit_name).read_text().strip()
        if limit == "max" or int(limit) >= _NO_LIMIT:
            return None
        usage = int((directory / usage_name).read_text())
        stat = dict(line.split() for line in (directory / "memory.stat").read_text().splitlines())
    except OSError:  # not there, as at a cgroup v2's root; or gone, or not for us to see
        return None
    # v1 counts this cgroup alone under the plain names, and those below it under total_…; v2 counts them always.
    cache = sum(int(stat.get(f"total_{name}", stat.get(name, 0))) for name in ("active_file", "inactive_file"))
    return max(0, int(limit) - usage + cache)


def _kib(field: str) -> int:
    return int(_status(field).removesuffix(" kB")) << 10


def _status(field: str) -> str:
    for line in (_PROC / "self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return value.strip()
    return "0"
