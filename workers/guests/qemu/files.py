"""Which file a path leads to on this host, in words that another host can compare."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import xxhash

from workers.guests.process_identity import boot_id
from workers.guests.qemu.needs import FileIdentity
from workers.guests.qemu.spec import QemuGuestSpec

#: Bytes. Kernels, initrds and firmware are far below; more than that is not read to compare it.
_LARGEST_READ = 1 << 30
_LOOP_MAJOR = 7


def read_once(spec: QemuGuestSpec) -> list[str]:
    """The files that QEMU reads when it starts, and never again."""
    return [path for path in (spec.firmware, spec.kernel, spec.initrd) if path]


def identity(path: str, *, contents: bool = False) -> FileIdentity:
    """What this host has there; with `contents` they are read and hashed. Raises OSError."""
    said = Path(path).stat()
    made = {"path": path, "machine": boot_id(), "inode": said.st_ino, "device": said.st_dev, "size": said.st_size}
    if stat.S_ISBLK(said.st_mode):
        made |= {"block": True, "device": said.st_rdev, "inode": 0}
        made |= {"size": _block_size(path), "serial": _serial(said.st_rdev)}
    else:
        made["filesystem"] = _filesystem(path)
        if contents and said.st_size <= _LARGEST_READ:
            made["digest"] = _digest(path)
    return FileIdentity.model_validate(made)


def _digest(path: str) -> str:
    made = xxhash.xxh3_128()
    with Path(path).open("rb") as file:
        while chunk := file.read(1 << 20):
            made.update(chunk)
    return made.hexdigest()


def _filesystem(path: str) -> str:
    """The type of the filesystem, as /proc/self/mountinfo calls it: that of the longest mount point above the path."""
    real = os.path.realpath(path)
    best, found = "", ""
    for line in Path("/proc/self/mountinfo").read_text("utf-8", "replace").splitlines():
        mount, _, rest = line.partition(" - ")
        point = mount.split()[4].replace("\\040", " ")
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):  # of two on one point, the later lies above
            best, found = point, rest.split()[0]
    return found


def _block_size(path: str) -> int:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.lseek(descriptor, 0, os.SEEK_END)
    finally:
        os.close(descriptor)


def _serial(device: int) -> str:
    """WWID of a disk, UUID of a device-mapper volume; a loop device says that it is one."""
    number = f"{os.major(device)}:{os.minor(device)}"
    if os.major(device) == _LOOP_MAJOR:
        return f"loop {number}"
    for name in ("dm/uuid", "wwid", "device/wwid", "device/serial"):
        try:
            if said := Path(f"/sys/dev/block/{number}/{name}").read_text("utf-8", "replace").strip():
                return said[:1024]
        except OSError:
            continue
    return ""
