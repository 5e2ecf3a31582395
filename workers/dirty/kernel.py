"""The kernel's half of dirty tracking: userfaultfd write protection and PAGEMAP_SCAN.

Numbers and layouts are those of linux/userfaultfd.h and linux/fs.h (the `_IOWR` encoding shared by x86-64 and arm64).
Every function raises the plain OSError of its system call; `explained` turns one into a sentence for an operator.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import struct

import numpy as np
import numpy.typing as npt

from config.errors import HostError

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

_SYS_USERFAULTFD = {"x86_64": 323, "aarch64": 282}
_UFFD_USER_MODE_ONLY = 1

_UFFDIO_API = 0xC018_AA3F
_UFFDIO_REGISTER = 0xC020_AA00
_UFFDIO_UNREGISTER = 0x8010_AA01
_UFFDIO_WAKE = 0x8010_AA02
_UFFDIO_WRITEPROTECT = 0xC018_AA06
_UFFD_API = 0xAA
_REGISTER_MODE_WP = 1 << 1
_WRITEPROTECT_MODE_WP = 1 << 0

#: Features of UFFDIO_API, and the kernel that brought each.
PAGEFAULT_FLAG_WP = 1 << 0  # 5.7: write protection at all
WP_HUGETLBFS_SHMEM = 1 << 12  # 5.19: on shared files, never-populated pages included (by markers in the page table)
WP_UNPOPULATED = 1 << 13  # 6.4: the same for anonymous memory
WP_ASYNC = 1 << 15  # 6.7: the kernel lifts the protection itself; nobody waits

_PAGEMAP_SCAN = 0xC060_6610
_SCAN_ARG_SIZE = 96
_PM_SCAN_WP_MATCHING = 1 << 0
_PM_SCAN_CHECK_WPASYNC = 1 << 1
_PAGE_IS_WRITTEN = 1 << 1
_PAGE_IS_PRESENT = 1 << 3
_PAGE_IS_SWAPPED = 1 << 4

#: One struct page_region each: start, end, categories. 1.5 MiB, enough for 512 MiB with every second page written.
_SCAN_REGIONS = 1 << 16

_MESSAGE = np.dtype(
    {"names": ["event", "address"], "formats": ["u1", "u8"], "offsets": [0, 16], "itemsize": 32}  # struct uffd_msg
)
_EVENT_PAGEFAULT = 0x12
#: Faults read at a time: more than any guest has virtual processors waiting.
_MESSAGES = 256

Addresses = npt.NDArray[np.int64]
"""Shape (n, 2): start and end of each stretch of a process's address space, in bytes."""


def userfaultfd() -> int:
    """A userfaultfd of this very process, non-blocking, closed on exec, for faults from user mode only."""
    number = _SYS_USERFAULTFD.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, f"no userfaultfd system call number is known for {platform.machine()}")
    fd = int(_libc.syscall(number, os.O_CLOEXEC | os.O_NONBLOCK | _UFFD_USER_MODE_ONLY))
    if fd < 0:
        raise OSError(ctypes.get_errno(), "userfaultfd")
    return fd


def handshake(fd: int, features: int) -> None:
    """UFFDIO_API: ask for `features`; EINVAL when this kernel lacks one."""
    fcntl.ioctl(fd, _UFFDIO_API, bytearray(struct.pack("=3Q", _UFFD_API, features, 0)))


def register(fd: int, address: int, size: int) -> None:
    """Make the range write-protectable through `fd`; EBUSY while another userfaultfd has it."""
    fcntl.ioctl(fd, _UFFDIO_REGISTER, bytearray(struct.pack("=4Q", address, size, _REGISTER_MODE_WP, 0)))


def unregister(fd: int, address: int, size: int) -> None:
    """Lift all protection from the range. Does not wake who waits there for a write fault to be served."""
    fcntl.ioctl(fd, _UFFDIO_UNREGISTER, bytearray(struct.pack("=2Q", address, size)))


def wake(fd: int, address: int, size: int) -> None:
    """Let every thread that waits for a fault in the range try its write again."""
    fcntl.ioctl(fd, _UFFDIO_WAKE, bytearray(struct.pack("=2Q", address, size)))


def write_protect(fd: int, address: int, size: int) -> None:
    """Protect the range. No processor writes through an old translation once this has returned."""
    fcntl.ioctl(fd, _UFFDIO_WRITEPROTECT, bytearray(struct.pack("=3Q", address, size, _WRITEPROTECT_MODE_WP)))


def write_unprotect(fd: int, address: int, size: int) -> None:
    """Lift the protection and wake every thread that waits for a page of the range."""
    fcntl.ioctl(fd, _UFFDIO_WRITEPROTECT, bytearray(struct.pack("=3Q", address, size, 0)))


def read_faults(fd: int) -> list[int]:
    """Addresses of the write faults that wait now, page-aligned, none when nothing waits."""
    try:
        messages = np.frombuffer(os.read(fd, _MESSAGES * _MESSAGE.itemsize), _MESSAGE)
    except BlockingIOError:  # the thread that waited was woken by an un-protect next to it
        return []
    return [int(address) for address in messages["address"][messages["event"] == _EVENT_PAGEFAULT]]


class PagemapScanner:
    """PAGEMAP_SCAN on one process; owns /proc/PID/pagemap and the buffer that the kernel fills."""

    def __init__(self, pid: int) -> None:
        self._fd = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        self._regions = np.zeros((_SCAN_REGIONS, 3), np.uint64)

    def take_written(self, start: int, end: int) -> Addresses:
        """What was written since it was last protected, protected again in the same step, page by page."""
        # Exactly this mask and nothing else: with it alone the kernel counts an entry that was zapped as written.
        return self._take(start, end, category=_PAGE_IS_WRITTEN, inverted=0)

    def take_holes(self, start: int, end: int) -> Addresses:
        """What has neither a page nor a marker (so its protection was lost), protected in the same step."""
        neither = _PAGE_IS_PRESENT | _PAGE_IS_SWAPPED
        return self._take(start, end, category=neither, inverted=neither)

    def _take(self, start: int, end: int, *, category: int, inverted: int) -> Addresses:
        flags = _PM_SCAN_WP_MATCHING | _PM_SCAN_CHECK_WPASYNC
        found = []
        while start < end:
            # struct pm_scan_arg: size, flags, start, end, walk_end, vec, vec_len, max_pages, then the four masks
            # inverted, all of, any of, returned.
            vec = self._regions.ctypes.data
            arg = bytearray(
                struct.pack(
                    "=12Q", _SCAN_ARG_SIZE, flags, start, end, 0, vec, _SCAN_REGIONS, 0, inverted, category, 0, category
                )
            )
            count = fcntl.ioctl(self._fd, _PAGEMAP_SCAN, arg)
            found.append(self._regions[:count, :2].astype(np.int64))
            (start,) = struct.unpack_from("=Q", arg, 32)  # walk_end: where it stopped because the buffer was full
        if not os.pread(self._fd, 8, 0):  # a process that has ended has no pages, and PAGEMAP_SCAN calls that clean
            raise OSError(errno.ESRCH, os.strerror(errno.ESRCH))
        return np.concatenate(found) if found else np.zeros((0, 2), np.int64)

    def close(self) -> None:
        """Close the pagemap. Harmless when repeated."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


_ADVICE = {
    errno.ESRCH: "the guest's process has ended: start the guest again",
    errno.ENOENT: "the guest's process has ended or unmapped its RAM: start the guest again",
    errno.EBUSY: "another userfaultfd already tracks it: end the worker that moves this guest",
    errno.EPERM: "permission was refused: run the worker as root or with CAP_SYS_PTRACE",
    errno.EACCES: "permission was refused: run the worker as root or with CAP_SYS_PTRACE",
    errno.EINVAL: "this kernel does not offer it: choose another tracker",
    errno.ENOTTY: "this kernel does not offer it: choose another tracker",
    errno.ENOSYS: "this kernel does not offer it: choose another tracker",
}


def explained(error: OSError, doing: str) -> HostError:
    """The error as an operator should read it; `doing` says what failed ("arming …")."""
    advice = _ADVICE.get(error.errno or 0, "see the kernel log, or choose another tracker")
    return HostError(f"{doing} failed ({error.strerror}): {advice}")
