"""The tracker for Linux 5.19 and later: the guest's first write to a page waits until this process has noted it.

One invariant, held under `_lock`: **a page that is not protected is marked in `_written`.**

- Serving a fault marks a stretch, then lifts its protection. `collect` takes the marks, then protects what they
  covered. Both do so under the lock, so neither ever sees the other half way.
- A write goes through only on an unprotected page, which is a marked one. Marks leave `_written` only into the table
  that `collect` returns. So a write before the page is protected again is in that table, and the caller copies after
  it returns; a write after that faults and is marked anew. No write can be lost.
- A fault that was read but not yet served when `collect` ran is served after it: the page is marked again. A fault on
  a page that a neighbour's fault had unprotected already is served again: reported once too often, never too little.

Never-populated pages are covered: on shared files protection leaves a marker in the page table (WP_HUGETLBFS_SHMEM),
and the first write to a marked entry faults like any other.

Limits. The descriptor serves user mode only: where the kernel writes for the guest (KVM, or read(2) into its RAM) the
call fails with EFAULT instead of waiting, so this tracker must not be given such a guest; `choose` sees to it. Writes
wait for a thread of this process: 20 to 60 us for each first write to a page, 3 where it writes in sequence.
If the thread fails, everything is unprotected at once and `collect` says so; when the process dies the kernel does it.
"""

from __future__ import annotations

import os
import select
import sys
import threading
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from config.errors import HostError
from workers.dirty import kernel
from workers.dirty.mappings import GuestMapping, TrackedProcess
from workers.dirty.protection import WriteProtection
from workers.dirty.trial import trial
from workers.ram import Ram
from workers.ranges import PAGE_SIZE, RangeTable

#: The second changes nothing where the kernel has it; where it has not (before 5.19), asking for it is an error.
_FEATURES = kernel.PAGEFAULT_FLAG_WP | kernel.WP_HUGETLBFS_SHMEM

#: Bytes unprotected at most for one fault. Each fault gets as much again as was written right before it, so a guest
#: that writes in sequence soon waits once per MiB (2 us a page, against 35 page by page), while a lone write costs the
#: link one page; with 64 KiB for every fault, random writes to 10 MiB made 150 MiB dirty (measured, Linux 6.18).
_AHEAD = 1 << 20

#: Seconds after which a thread that runs Python code lets the serving one run. Python's own 5 ms make a fault wait
#: 570 us on average beside a busy thread, this 90 us, and a tenth of it 340 us (measured).
_SWITCH_INTERVAL = 0.0005

#: Bytes that `collect` takes under the lock at a time, while faults wait: about 2 ms when all are marked (measured).
_WINDOW = 64 << 20

#: Marked stretches closer than this are protected in one call: one call costs what walking about 256 KiB costs.
#: The gap between is protected already (the invariant), so protecting it again changes nothing.
_JOINED = 256 << 10


class UserfaultfdTracker:
    """Served write faults; see the module."""

    kind: ClassVar[str] = "userfaultfd"
    reads_everything: ClassVar[bool] = False
    sees_kernel_writes: ClassVar[bool] = False

    def __init__(self, guest: TrackedProcess, ram: Ram) -> None:
        self._guest = guest
        self._ram = ram
        self._written: npt.NDArray[np.bool_] = np.zeros(-(-ram.size // PAGE_SIZE), np.bool_)
        self._lock = threading.Lock()
        self._protection: WriteProtection | None = None
        self._thread: threading.Thread | None = None
        self._stop = -1
        self._switch_interval = sys.getswitchinterval()
        self._failure: str | None = None

    @staticmethod
    def self_test() -> None:
        """Try it on memory of our own."""
        trial(UserfaultfdTracker)

    def start(self) -> None:
        """Protect everything. Raises HostError when this kernel cannot."""
        self._protection = WriteProtection(self._guest, self._ram, _FEATURES)
        try:
            sys.setswitchinterval(_SWITCH_INTERVAL)
            self._stop = os.eventfd(0, os.EFD_CLOEXEC)
            self._thread = threading.Thread(
                target=self._serve, args=(self._protection, self._stop), name="served-faults", daemon=True
            )
            self._thread.start()
            self._protection.protect(0, self._ram.size)
        except OSError as error:
            self.close()
            raise kernel.explained(error, "protecting the guest's memory") from None

    def collect(self) -> RangeTable:
        """What was written, protected again. Raises HostError when faults are no longer served."""
        protection = self._protection
        if protection is None:
            raise HostError("the dirty tracker is closed: start a new one")
        taken = np.zeros_like(self._written)
        try:
            for mapping in protection.mappings:
                window = max(_WINDOW, mapping.page_size)
                for start in range(mapping.start, mapping.start + mapping.size, window):
                    self._take(protection, start, min(start + window, mapping.start + mapping.size), taken)
        except OSError as error:
            raise kernel.explained(error, "protecting written pages again") from None
        if self._failure:  # asked last: what failed while we collected is in no table
            raise HostError(f"write faults are no longer served ({self._failure}): start over with another tracker")
        return RangeTable.from_bitmap(taken)

    def close(self) -> None:
        """Lift all protection, wake every waiting write. Harmless when repeated."""
        if self._thread is not None:
            os.eventfd_write(self._stop, 1)
            self._thread.join()
            self._thread = None
        if self._stop >= 0:
            os.close(self._stop)
            self._stop = -1
        if self._protection is not None:
            self._protection.close()  # who faulted since the thread ended waited until here
            self._protection = None
            sys.setswitchinterval(self._switch_interval)

    def _take(self, protection: WriteProtection, start: int, end: int, taken: npt.NDArray[np.bool_]) -> None:
        pages = slice(start // PAGE_SIZE, end // PAGE_SIZE)
        with self._lock:
            taken[pages] = self._written[pages]
            self._written[pages] = False
            for low, high in joined(taken[pages]):
                protection.protect(start + low, start + high)

    def _serve(self, protection: WriteProtection, stop: int) -> None:
        poll = select.poll()
        poll.register(protection.fd, select.POLLIN)
        poll.register(stop, select.POLLIN)
        try:
            while not any(fd == stop for fd, _ in poll.poll()):
                faults = kernel.read_faults(protection.fd)
                with self._lock:
                    for address in faults:
                        low, high = stretch(protection.mappings, address, self._written)
                        self._written[low // PAGE_SIZE : high // PAGE_SIZE] = True
                        protection.unprotect(low, high)
        except Exception as error:  # noqa: BLE001  # whatever it was, the guest must not wait for us any longer
            self._failure = str(error)
            protection.release()


def stretch(mappings: list[GuestMapping], address: int, written: npt.NDArray[np.bool_]) -> tuple[int, int]:
    """The guest memory, in ram_addr, to unprotect for a fault at `address`: its page, and ahead of a run of writes.

    Shapes: `written` has one bool per page. Whole pages of the mapping's own size, which the kernel insists on.
    """
    for mapping in mappings:
        if mapping.address <= address < mapping.address + mapping.size:
            unit = mapping.page_size
            low = mapping.start + (address - mapping.address) // unit * unit
            before = written[max(mapping.start, low - _AHEAD) // PAGE_SIZE : low // PAGE_SIZE]
            run = len(before) if before.all() else int(np.argmin(before[::-1]))
            size = max(unit, run * PAGE_SIZE // unit * unit)
            return low, min(low + size, mapping.start + mapping.size)
    raise ValueError(f"a write fault at {address:#x}, outside the guest's RAM")


def joined(marked: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Byte ranges that cover the marked pages, joined where the gap is short."""
    bounds = RangeTable.from_bitmap(marked).bounds
    if not len(bounds):
        return []
    apart = np.flatnonzero(bounds[1:, 0] - bounds[:-1, 1] > _JOINED)
    starts = bounds[np.concatenate(([0], apart + 1)), 0]
    ends = bounds[np.concatenate((apart, [len(bounds) - 1])), 1]
    return list(zip(starts.tolist(), ends.tolist(), strict=True))
