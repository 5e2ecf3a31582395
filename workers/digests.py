"""`verify-ram`: what was sent last, page by page, and the comparison before READY.

Both sides keep one xxh3 per page: the source of what it is about to send, the destination of what lies in its memory.
A digest taken while the guest writes may be of a page that changes before it is sent; then the tracker reports that
page after the digest was taken, and it is sent and digested again. So when the last round, with the guest paused, is
written, every digest on both sides is of the final page, and only that round's pages were hashed within the downtime.
What goes over the wire is one digest per chunk, of its page digests: 8 KiB for a GiB.

xxh3 finds damage, not malice: the channel's integrity is TLS's or the fabric's concern. 0.7 µs a page here, 5 GiB/s.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import xxhash

from workers.ranges import PAGE_SIZE, PageRange, RangeTable

#: Pages hashed between two chances for another thread to run: below 0.1 ms.
_STRIDE = 128


class PageDigests:
    """The last known digest of every page of one guest on one side; 0 means never sent.

    Shapes: uint64, one per page of `size` bytes. Not shared between threads.
    """

    def __init__(self, view: memoryview, size: int) -> None:
        self._view = view
        self._table = np.zeros(-(-size // PAGE_SIZE), np.uint64)

    def update(self, ranges: RangeTable) -> None:
        """Digest the pages of `ranges` as they are in memory now."""
        digest, view = xxhash.xxh3_64_intdigest, self._view
        for start, end in ranges.split(_STRIDE * PAGE_SIZE).tolist():
            values = [digest(view[at : at + PAGE_SIZE]) for at in range(start, end, PAGE_SIZE)]
            self._table[start // PAGE_SIZE : start // PAGE_SIZE + len(values)] = values

    def refresh(self) -> None:
        """Digest every page that was ever sent anew, the guest being paused.

        Needed where no tracker reports each write: a page that changed and changed back was digested in between.
        """
        self.update(RangeTable.from_bitmap(self._table != 0))

    def rollup(self, chunk_size: int) -> npt.NDArray[np.uint64]:
        """One digest per chunk of `chunk_size` bytes, over the digests of its pages; shape (chunks,)."""
        per_chunk = chunk_size // PAGE_SIZE
        table = memoryview(self._table.astype("<u8").tobytes())
        step = per_chunk * 8
        return np.array(
            [xxhash.xxh3_64_intdigest(table[at : at + step]) for at in range(0, len(table), step)], np.uint64
        )


def rollup_unit(size: int, chunk_size: int) -> int:
    """Bytes under one digest on the wire, for a guest of `size` bytes: a chunk, or more where they would be too many.

    65,536 digests are 512 KiB, sent while the guest is paused.
    """
    unit = chunk_size
    while size > unit << 16:
        unit *= 2
    return unit


def differing(mine: npt.NDArray[np.uint64], theirs: npt.NDArray[np.uint64], chunk_size: int) -> list[PageRange]:
    """The chunks whose digests differ, as memory ranges; all of them when the shapes do."""
    if mine.shape != theirs.shape:
        return [PageRange(0, max(len(mine), len(theirs)) * chunk_size)]
    return [PageRange(at * chunk_size, (at + 1) * chunk_size) for at in np.flatnonzero(mine != theirs).tolist()]
