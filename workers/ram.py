"""A guest's RAM as the workers see it: the files behind its RAM blocks, mapped end to end.

Block files are mapped MAP_SHARED and writable on both sides, also on the source, which only reads: a private mapping
would send stale pages, and RDMA registration refuses a read-only shared one (measured, Linux 6.1).
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

from config.errors import HostError, HostMemoryError
from workers.ranges import PAGE_SIZE, PageRange, RangeTable

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_PROT_NONE, _MAP_FIXED, _MAP_NORESERVE = 0, 0x10, 0x4000
_MAP_FAILED = ctypes.c_void_p(-1).value


@dataclass(frozen=True, slots=True)
class RamBlock:
    """One RAM block, named as QEMU names it; sizes in bytes."""

    id: str
    size: int
    page_size: int = PAGE_SIZE


@dataclass(frozen=True, slots=True)
class BlockFile:
    """A block together with the file that holds its memory on this host."""

    block: RamBlock
    path: Path


class Extent(NamedTuple):
    """A stretch of a block's file."""

    fd: int
    offset: int
    size: int


class Ram:
    """The blocks of one guest, mapped end to end; `view[a:b]` is guest memory [a, b) in ram_addr.

    Owns the mapping and the file descriptors. `close()` twice is harmless; views handed out die with it.
    """

    def __init__(self, files: Sequence[BlockFile]) -> None:
        """Map the files. Raises HostError when one is missing or not of its block's size."""
        self.blocks = tuple(file.block for file in files)
        self.size = sum(block.size for block in self.blocks)
        self._fds: list[int] = []
        self._bases: list[int] = []
        self._paths = [file.path for file in files]
        # Reserve the whole span first, then put each file at its place: one address, one view, one algebra.
        self.address = _map(None, self.size, _PROT_NONE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE, -1)
        try:
            base = 0
            for file in files:
                self._add(file, base)
                base += file.block.size
        except BaseException:
            self.close()
            raise
        self.view = memoryview((ctypes.c_ubyte * self.size).from_address(self.address)).cast("B")

    @classmethod
    def elsewhere(cls, blocks: Sequence[RamBlock]) -> Self:
        """The memory of a guest that moves it itself: its blocks are known, and no byte of it can be reached here."""
        ram = cls.__new__(cls)
        ram.blocks, ram.size, ram.address, ram.view = tuple(blocks), 0, 0, memoryview(b"")
        ram._fds, ram._bases = [], []
        return ram

    def _add(self, file: BlockFile, base: int) -> None:
        try:
            fd = os.open(file.path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise HostError(f"the RAM file {file.path} cannot be opened ({error.strerror}): is the guest up?") from None
        self._fds.append(fd)
        self._bases.append(base)
        actual = os.fstat(fd).st_size
        if actual != file.block.size:
            raise HostError(f"the RAM file {file.path} has {actual} bytes, block {file.block.id} {file.block.size}")
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        _map(self.address + base, file.block.size, protection, mmap.MAP_SHARED | _MAP_FIXED, fd)

    def populated(self) -> RangeTable:
        """What holds data: SEEK_DATA skips holes, which reading through the mapping would allocate."""
        found: list[PageRange] = []
        for fd, base, block in zip(self._fds, self._bases, self.blocks, strict=True):
            end = 0
            while end < block.size:
                try:
                    start = os.lseek(fd, end, os.SEEK_DATA)
                except OSError:  # ENXIO: no data from here to the end
                    break
                end = os.lseek(fd, start, os.SEEK_HOLE)
                found.append(PageRange(base + start, base + end))
        return RangeTable(found)

    def extents(self, start: int, end: int) -> list[Extent]:
        """The file stretches behind [start, end): one, unless it crosses from one block into the next."""
        found = []
        for fd, base, block in zip(self._fds, self._bases, self.blocks, strict=True):
            low, high = max(start, base), min(end, base + block.size)
            if low < high:
                found.append(Extent(fd, low - base, high - low))
        return found

    def write(self, start: int, data: memoryview) -> None:
        """Put `data` (bytes) at ram_addr `start` by way of the files, without a page fault. It may cross blocks.

        The mapping shows it at once: both are one page cache. A page written whole is not zeroed first, and where the
        RAM directory is full this is an error, while touching the mapping would be a SIGBUS. Raises HostMemoryError;
        what was written by then stays.
        """
        while data:
            at = bisect_right(self._bases, start) - 1
            offset = start - self._bases[at]
            piece = data[: self.blocks[at].size - offset]
            try:
                done = os.pwrite(self._fds[at], piece, offset)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise self.too_small(error.errno or 0) from None
                # hugetlbfs can be mapped, but not written; its pages were set aside when it was mapped.
                done = len(piece)
                self.view[start : start + done] = piece
            start, data = start + done, data[done:]

    def too_small(self, code: int) -> HostMemoryError:
        """What to say when memory cannot be had for a page of these files; `code` is the errno."""
        return HostMemoryError(
            f"guest memory does not fit into {self.places} ({os.strerror(code)}): make room there, or go elsewhere"
        )

    @property
    def places(self) -> str:
        """The directories that the RAM files are in, for a message."""
        return ", ".join(dict.fromkeys(str(path.parent) for path in self._paths))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Unmap and close the files."""
        if self.address:
            if hasattr(self, "view"):
                self.view.release()
            _libc.munmap(self.address, self.size)
            self.address = 0
        while self._fds:
            os.close(self._fds.pop())


def available_memory() -> int:
    """Bytes that this host could give to a new guest now without swapping (MemAvailable)."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    raise HostError("/proc/meminfo has no MemAvailable: is /proc mounted?")


def _map(address: int | None, size: int, protection: int, flags: int, fd: int) -> int:
    got = _libc.mmap(address, size, protection, flags, fd, 0)
    if got == _MAP_FAILED or not got:
        raise HostError(f"{size} bytes of guest memory cannot be mapped: {os.strerror(ctypes.get_errno())}")
    return int(got)
