"""Guest memory registered with the device: populated first, then pinned, one region a range.

Populating dominates: fresh pages cost 2.6 to 5.5 ms per MiB on soft-RoCE, pinning pages that exist 0.05 (measured).
pyverbs holds Python's lock all the while, so the pages are made first, by calls which do not: fallocate gives them to
the file, madvise maps them, one piece beside the next. madvise alone took a fifth longer, in as many threads.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import resource
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np
import numpy.typing as npt

from config.errors import DeviceError, HostError, MemoryLockError
from workers.ram import Extent, Ram
from workers.ranges import PAGE_SIZE, PageRange
from workers.registration.limits import lock_limit, pinned_memory
from workers.transports.contract import RemoteRegion
from workers.transports.verbs.library import Verbs

_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_MADV_POPULATE_WRITE = 23  # Linux 5.14
#: One call populates at most this much: between two the work can be stopped, and threads share it out.
_STEP = 8 << 20
#: More threads than this gained nothing in QEMU's own preallocation on one NUMA node.
_THREADS = min(4, os.cpu_count() or 1)


class RegisteredMemory:
    """The registered ranges of one `Ram` on one side. Ranges that overlap are the caller's mistake."""

    def __init__(self, verbs: Verbs, domain: Any, ram: Ram, *, writable: bool, on_demand: bool) -> None:
        """`writable`: the peer may write what is registered. `on_demand`: the device faults pages in, pinning none."""
        flags = verbs.enums
        self._verbs = verbs
        self._domain = domain
        self._ram = ram
        self._writable, self._on_demand = writable, on_demand
        self._limit: int | None = None
        self._limit_as_of: tuple[int, tuple[int, int]] | None = None
        self._access = flags.IBV_ACCESS_LOCAL_WRITE | flags.IBV_ACCESS_REMOTE_WRITE if writable else 0
        self._access |= flags.IBV_ACCESS_ON_DEMAND if on_demand else 0
        self._regions: dict[int, tuple[Any, PageRange]] = {}
        self._threads = ThreadPoolExecutor(_THREADS, "populate")
        # The local key of every page, 0 where there is none: found for thousands of rows by one look-up. Its own pages
        # exist only where guest memory is registered, a thousandth of that.
        self._keys = np.zeros(-(-ram.size // PAGE_SIZE), np.uint32)

    def add(self, ranges: Iterable[PageRange], still_wanted: Callable[[], None]) -> list[RemoteRegion]:
        """Populate and register, one region a range; `still_wanted` is called between steps and may raise to stop.

        Raises MemoryLockError, HostError; then nothing of this call stays registered.
        """
        wanted = list(ranges)
        if not self._on_demand:
            self._refuse_too_much(sum(found.size for found in wanted))
        if self._writable and not self._on_demand:
            self._make_pages(wanted, still_wanted)
        done: list[RemoteRegion] = []
        try:
            for found in wanted:
                still_wanted()
                done.append(self._register(found))
        except BaseException:
            self.remove(done)
            raise
        return done

    def _make_pages(self, ranges: Iterable[PageRange], still_wanted: Callable[[], None]) -> None:
        """Make the pages exist. Raises HostError when this host has no memory left."""
        made: list[Future[None]] = []
        try:
            for piece in _pieces(ranges):
                still_wanted()
                for extent in self._ram.extents(piece.start, piece.end):
                    _allocate(extent)
                made.append(self._threads.submit(_populate, self._ram.address + piece.start, piece.size))
            for one in made:
                one.result()
                still_wanted()
        finally:
            for one in made:
                one.cancel()
            wait(made)

    def _register(self, found: PageRange) -> RemoteRegion:
        address = self._ram.address + found.start
        try:
            region = self._verbs.MR(self._domain, found.size, self._access, address=address)
        except self._verbs.RDMAError as error:
            raise _refused(found.size, getattr(error, "error_code", 0)) from None
        # A region that no peer may reach has no remote key.
        key = region.rkey if self._writable else region.lkey
        self._regions[key] = region, found
        self._keys[found.start // PAGE_SIZE : -(-found.end // PAGE_SIZE)] = region.lkey
        return RemoteRegion(found.start, found.end, address, key)

    def _refuse_too_much(self, asked: int) -> None:
        """Before the first page is populated: pages of a RAM file cannot be given back once they exist."""
        # Whether a limit binds us is looked up in 24 ms in an emulated machine: too much for thousands of requests.
        now = os.geteuid(), resource.getrlimit(resource.RLIMIT_MEMLOCK)
        if now != self._limit_as_of:
            self._limit_as_of, self._limit = now, lock_limit()
        if self._limit is not None and pinned_memory() + asked > self._limit:
            raise _refused(asked, errno.ENOMEM)

    def remove(self, regions: Iterable[RemoteRegion]) -> None:
        """Deregister; the pages stay populated. What is not registered is left alone."""
        for gone in regions:
            region, found = self._regions.pop(gone.key, (None, None))
            if region is not None and found is not None:
                self._keys[found.start // PAGE_SIZE : -(-found.end // PAGE_SIZE)] = 0
                region.close()

    def close(self) -> None:
        """Deregister everything."""
        self._threads.shutdown(cancel_futures=True)
        while self._regions:
            region, _ = self._regions.popitem()[1]
            region.close()

    def local_keys(self, start: npt.NDArray[np.int64], length: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
        """The local key for each row. Raises ValueError when one is not within one registered range."""
        keys = self._keys[start // PAGE_SIZE]
        if not keys.all() or (keys != self._keys[(start + length - 1) // PAGE_SIZE]).any():
            raise ValueError("a write reads memory that is not registered on this side, or crosses two regions")
        return keys


def _allocate(extent: Extent) -> None:
    """Not posix_fallocate: where the file system knows no such call that one writes to the file instead."""
    if _libc.fallocate(extent.fd, 0, extent.offset, extent.size):
        number = ctypes.get_errno()
        if number not in (errno.EOPNOTSUPP, errno.EINTR):  # populating will do it, only slower
            raise _no_memory(extent.size, number)


def _populate(address: int, size: int) -> None:
    if _libc.madvise(address, size, _MADV_POPULATE_WRITE):
        number = ctypes.get_errno()
        if number != errno.EINVAL:  # a kernel before 5.14: registering populates, only slower
            raise _no_memory(size, number)


def _no_memory(size: int, number: int) -> HostError:
    return HostError(
        f"{size} bytes of guest memory cannot be populated ({os.strerror(number)}): free memory on this host, or give "
        "its RAM directory more space"
    )


def _pieces(ranges: Iterable[PageRange]) -> Iterator[PageRange]:
    """Whole pages, since a range may begin within one."""
    for found in ranges:
        first, last = found.start // PAGE_SIZE * PAGE_SIZE, -(-found.end // PAGE_SIZE) * PAGE_SIZE
        for start in range(first, last, _STEP):
            yield PageRange(start, min(start + _STEP, last))


def _refused(size: int, number: int) -> HostError:
    limit, held = lock_limit(), pinned_memory()
    if number == errno.ENOMEM and limit is not None:
        return MemoryLockError(
            f"{size} bytes of guest memory cannot be pinned: RLIMIT_MEMLOCK is {limit} bytes, of which this worker "
            f"already holds {held}; raise the limit (LimitMEMLOCK= of the service), or set pin-budget below it"
        )
    if number == errno.ENOMEM:
        return MemoryLockError(
            f"{size} bytes of guest memory cannot be pinned though no limit forbids it: the device is out of regions, "
            "or this host out of memory; set pin-budget"
        )
    return DeviceError(
        f"{size} bytes of guest memory cannot be registered ({os.strerror(number)}): RAM files must be on tmpfs or "
        "hugetlbfs; look at the kernel log for the device"
    )


def scratch_page(verbs: Verbs, domain: Any) -> tuple[mmap.mmap, Any]:
    """A page that is no guest memory, and its region; the peer may read and write it. Close the region first."""
    page = mmap.mmap(-1, PAGE_SIZE)
    flags = verbs.enums
    access = flags.IBV_ACCESS_LOCAL_WRITE | flags.IBV_ACCESS_REMOTE_WRITE | flags.IBV_ACCESS_REMOTE_READ
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    try:
        return page, verbs.MR(domain, PAGE_SIZE, access, address=address)
    except verbs.RDMAError as error:
        raise _refused(PAGE_SIZE, getattr(error, "error_code", 0)) from None
