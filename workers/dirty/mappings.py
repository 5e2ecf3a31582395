"""Where a guest's RAM lies in the guest's own address space: /proc/PID/maps matched with its block files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from config.errors import HostError
from workers.ram import BlockFile, Ram


class TrackedProcess(Protocol):
    """The part of a guest that write protection needs; every Guest has it."""

    @property
    def pid(self) -> int:
        """The process whose page tables hold the RAM."""
        ...

    def block_files(self) -> list[BlockFile]:
        """RAM blocks and their files, in ram_addr order."""
        ...

    def userfaultfd(self) -> int:
        """A userfaultfd made inside that process."""
        ...


class FileIdentity(NamedTuple):
    """A file as the kernel tells files apart: inode numbers alone repeat from one tmpfs to the next."""

    device: int
    inode: int


class Vma(NamedTuple):
    """A shared, writable mapping of a file; bytes."""

    address: int
    size: int
    offset: int
    file: FileIdentity


class GuestMapping(NamedTuple):
    """Guest memory [start, start+size) in ram_addr lies at `address` in the guest's process."""

    address: int
    start: int
    size: int
    page_size: int


def parse_maps(text: str) -> list[Vma]:
    """The shared, writable file mappings in the text of /proc/PID/maps."""
    found = []
    for line in text.splitlines():
        addresses, permissions, offset, device, inode = line.split(None, 5)[:5]
        if permissions[1] == "w" and permissions[3] == "s":
            low, high = (int(part, 16) for part in addresses.split("-"))
            major, minor = (int(part, 16) for part in device.split(":"))
            file = FileIdentity(os.makedev(major, minor), int(inode))
            found.append(Vma(low, high - low, int(offset, 16), file))
    return found


def place(vmas: Sequence[Vma], blocks: Sequence[tuple[BlockFile, FileIdentity]]) -> list[GuestMapping]:
    """Lay the mappings over the blocks, in ram_addr order.

    A block may be mapped in several pieces. Raises HostError unless they cover it exactly once: memory that the guest
    writes through a second mapping, or one that is not shared, cannot be followed.
    """
    placed = []
    base = 0
    for block_file, identity in blocks:
        block = block_file.block
        covered = 0
        for vma in sorted((vma for vma in vmas if vma.file == identity), key=lambda vma: vma.offset):
            if vma.offset != covered or covered == block.size:
                raise HostError(
                    f"the guest maps RAM block {block.id} more than once or with gaps: it cannot be moved while it runs"
                )
            size = min(vma.size, block.size - covered)
            placed.append(GuestMapping(vma.address, base + covered, size, block.page_size))
            covered += size
        if covered != block.size:
            raise HostError(
                f"the guest maps {covered} of {block.size} bytes of RAM block {block.id} shared and writable from "
                f"{block_file.path}: give the guest this file as shared memory (share=on)"
            )
        base += block.size
    return placed


def guest_mappings(guest: TrackedProcess, ram: Ram) -> list[GuestMapping]:
    """The guest's mappings of its RAM. Raises HostError when they do not cover it, or the process is gone."""
    try:
        vmas = parse_maps(Path(f"/proc/{guest.pid}/maps").read_text())
        blocks = [(file, _identity(file.path)) for file in guest.block_files()]
    except OSError as error:
        raise HostError(
            f"the memory of process {guest.pid} cannot be read ({error.strerror}): is the guest up and the worker root?"
        ) from None
    if guest.pid == os.getpid():  # a trial: guest and worker are one process, and `ram` is the worker's mapping
        vmas = [vma for vma in vmas if not ram.address <= vma.address < ram.address + ram.size]
    return place(vmas, blocks)


def _identity(path: Path) -> FileIdentity:
    status = path.stat()
    return FileIdentity(status.st_dev, status.st_ino)
