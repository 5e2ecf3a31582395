"""The tracker for Linux 6.7 and later: the kernel notes writes by itself, PAGEMAP_SCAN takes the notes.

Write protection is lifted by the kernel at a page's first write (WP_ASYNC, 1 to 2 us); nobody waits for the worker.
PAGEMAP_SCAN reports what is no longer protected and protects it again under the page table's lock, so a write lands
either before (reported now) or after (faults, reported next time). Writes that the kernel does for the guest, by
read(2) or KVM, are seen too. Not a write, and not reported: discarding clean memory (a balloon's hole punch).
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from config.errors import HostError
from workers.dirty import kernel
from workers.dirty.mappings import TrackedProcess
from workers.dirty.protection import WriteProtection
from workers.dirty.trial import trial
from workers.ram import Ram
from workers.ranges import EMPTY, RangeTable

_FEATURES = kernel.WP_ASYNC | kernel.WP_UNPOPULATED | kernel.WP_HUGETLBFS_SHMEM


class PagemapScanTracker:
    """Asynchronous write protection plus PAGEMAP_SCAN; see the module."""

    kind: ClassVar[str] = "pagemap-scan"
    reads_everything: ClassVar[bool] = False
    sees_kernel_writes: ClassVar[bool] = True

    def __init__(self, guest: TrackedProcess, ram: Ram) -> None:
        self._guest = guest
        self._ram = ram
        self._protection: WriteProtection | None = None
        self._scanner: kernel.PagemapScanner | None = None

    @staticmethod
    def self_test() -> None:
        """Try it on memory of our own; the older kernels' errors with zapped page tables are among the cases."""
        trial(PagemapScanTracker)

    def start(self) -> None:
        """Protect everything. Raises HostError when this kernel cannot."""
        try:
            self._scanner = kernel.PagemapScanner(self._guest.pid)
            self._protection = WriteProtection(self._guest, self._ram, _FEATURES)
            # Protect by ioctl once, though the scan would do: it gives every page an entry in the page table and
            # splits huge pages, so that a missing entry (below) can only mean a lost one.
            self._protection.protect(0, self._ram.size)
            self.collect()  # fails here, not in the first round, where the scan is not offered
        except OSError as error:
            self.close()
            raise kernel.explained(error, "arming PAGEMAP_SCAN") from None
        except HostError:
            self.close()
            raise

    def collect(self) -> RangeTable:
        """What was written, protected again. Raises HostError when the guest is gone."""
        if self._protection is None or self._scanner is None:
            raise HostError("the dirty tracker is closed: start a new one")
        found = [EMPTY.bounds]
        try:
            for mapping in self._protection.mappings:
                span = (mapping.address, mapping.address + mapping.size)
                # Before "fix PAGEMAP_SCAN written state for PMD holes" (July 2026) a page table that was zapped whole
                # counted as clean. Since `start` gave every page an entry, a page without one may have been written.
                # The second look costs about 1 ms per GiB.
                shift = mapping.start - mapping.address
                found += [self._scanner.take_written(*span) + shift, self._scanner.take_holes(*span) + shift]
        except OSError as error:
            raise kernel.explained(error, "collecting written pages with PAGEMAP_SCAN") from None
        return RangeTable(np.concatenate(found))

    def close(self) -> None:
        """Stop tracking, about 25 ms per GiB. Harmless when repeated."""
        if self._scanner is not None:
            self._scanner.close()
            self._scanner = None
        if self._protection is not None:
            self._protection.close()
            self._protection = None
