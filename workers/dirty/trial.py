"""A dirty tracker tried on memory of our own: each way of writing that some kernel has been known to miss.

Guest and worker are this one process here. All writes are made in a thread, through calls that let go of the
interpreter's lock (ctypes), since the thread that serves a write fault needs that lock.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar, Protocol

from config.errors import HostError
from workers.dirty import kernel
from workers.dirty.mappings import TrackedProcess
from workers.ram import BlockFile, Ram, RamBlock
from workers.ranges import PAGE_SIZE, RangeTable

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
_MAP_FIXED = 0x10
_MADV_REMOVE, _MADV_COLLAPSE = 9, 25

#: What one page table spans on x86-64 and arm64: each case has one, or a huge page, of its own.
_STRETCH = 2 << 20
_STRETCHES = 7

#: Seconds for one write; a write that takes longer hangs, on any machine.
_PATIENCE = 10.0


class Tracker(Protocol):
    """What is tried: a DirtyTracker that says what it cannot see."""

    kind: ClassVar[str]
    sees_kernel_writes: ClassVar[bool]

    def start(self) -> None:
        """Protect everything."""
        ...

    def collect(self) -> RangeTable:
        """What was written since."""
        ...

    def close(self) -> None:
        """Stop tracking."""
        ...


class OwnMemory:
    """A guest that is this process: a few MiB of a memory file, mapped where huge pages would fit."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.size = _STRETCHES * _STRETCH
        self._fd = os.memfd_create("droveway-trial", os.MFD_CLOEXEC)
        os.ftruncate(self._fd, self.size)
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._reserved = _libc.mmap(None, self.size + _STRETCH, 0, private, -1, 0)
        self.address = -(-self._reserved // _STRETCH) * _STRETCH
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        _libc.mmap(self.address, self.size, protection, mmap.MAP_SHARED | _MAP_FIXED, self._fd, 0)

    def block_files(self) -> list[BlockFile]:
        """The one block."""
        return [BlockFile(RamBlock("trial", self.size), Path(f"/proc/self/fd/{self._fd}"))]

    def userfaultfd(self) -> int:
        """One of our own."""
        try:
            return kernel.userfaultfd()
        except OSError as error:
            raise kernel.explained(error, "making a userfaultfd") from None

    def fill(self, start: int, end: int, value: int) -> None:
        """Set bytes [start, end)."""
        _libc.memset(self.address + start, value, end - start)

    def advise(self, start: int, end: int, advice: int) -> None:
        """madvise(2) on [start, end); a refusal leaves the memory as it was, which every case can live with."""
        _libc.madvise(self.address + start, end - start, advice)

    def receive(self, start: int, end: int) -> None:
        """Let the kernel write [start, end), as read(2) from a pipe does."""
        readable, writable = os.pipe()
        with os.fdopen(readable, "rb", buffering=0) as source, os.fdopen(writable, "wb", buffering=0) as sink:
            sink.write(bytes(end - start))
            source.readinto((ctypes.c_ubyte * (end - start)).from_address(self.address + start))

    def close(self) -> None:
        """Unmap and free."""
        _libc.munmap(self._reserved, self.size + _STRETCH)
        os.close(self._fd)


Case = tuple[str, Callable[[], None], RangeTable]
"""What is written, how, and the ranges that must be reported."""


def trial(factory: Callable[[TrackedProcess, Ram], Tracker]) -> None:
    """Run every case. Raises HostError when the tracker does not work here, misses a write, or hangs one."""
    with contextlib.ExitStack() as stack:
        memory = OwnMemory()
        stack.callback(memory.close)
        ram = Ram(memory.block_files())
        stack.callback(ram.close)
        memory.fill(_STRETCH, memory.size, 1)  # the first stretch stays a hole
        tracker = factory(memory, ram)
        stack.callback(tracker.close)
        tracker.start()
        for what, write, expected in _cases(memory, kernel_writes=tracker.sees_kernel_writes):
            _patiently(write, what, tracker)
            missed = expected - tracker.collect()
            if missed:
                raise HostError(f"{tracker.kind} misses {what} on this kernel: choose another tracker")
        tracker.close()
        _patiently(lambda: memory.fill(0, memory.size, 9), "a write after tracking has ended", tracker)


def _cases(memory: OwnMemory, *, kernel_writes: bool) -> Iterator[Case]:
    pages = [0, PAGE_SIZE, 100 * PAGE_SIZE, _STRETCH - PAGE_SIZE]

    def write_pages(base: int, value: int) -> tuple[Callable[[], None], RangeTable]:
        def write() -> None:
            for page in pages:
                memory.fill(base + page, base + page + 1, value)

        return write, RangeTable((base + page, base + page + PAGE_SIZE) for page in pages)

    def write_all_then(base: int, advice: int) -> tuple[Callable[[], None], RangeTable]:
        def write() -> None:
            memory.fill(base, base + _STRETCH, 2)
            memory.advise(base, base + _STRETCH, advice)

        return write, RangeTable([(base, base + _STRETCH)])

    hole, plain, dropped, punched, early, late, kernels = (index * _STRETCH for index in range(_STRETCHES))
    yield "a first write to a page never populated", *write_pages(hole, 2)
    yield "a write to a populated page", *write_pages(plain, 2)
    yield "a second write to a page", *write_pages(plain, 3)
    yield (
        "a write to memory dropped from the page table since (MADV_DONTNEED)",
        *write_all_then(dropped, mmap.MADV_DONTNEED),
    )
    yield "a write after a drop from the page table", *write_pages(dropped, 3)
    yield "a write to memory discarded since (hole punch)", *write_all_then(punched, _MADV_REMOVE)
    yield "a write to discarded memory", *write_pages(punched, 3)
    yield "a write to memory collapsed into a huge page since", *write_all_then(late, _MADV_COLLAPSE)
    memory.advise(early, early + _STRETCH, _MADV_COLLAPSE)
    yield "a write to a huge page", *write_pages(early, 3)
    if kernel_writes:
        end = kernels + PAGE_SIZE
        yield "a write by the kernel (read)", lambda: memory.receive(kernels, end), RangeTable([(kernels, end)])


def _patiently(write: Callable[[], None], what: str, tracker: Tracker) -> None:
    thread = threading.Thread(target=write, name="tracker-trial", daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    if thread.is_alive():
        tracker.close()  # wakes it: no thread of ours is left behind on memory that is about to go
        thread.join()
        raise HostError(f"{tracker.kind} hangs {what} on this kernel: choose another tracker")
