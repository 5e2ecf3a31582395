"""`zero-pages`: which pages need not be sent, because the destination's fresh memory has them already.

A page is read in full only when its first 8 bytes are zero and it was never sent. Looking at those first bytes costs
0.01 µs a page, hashing it 0.5. In batches of 16 MiB, on one core of a busy machine: 16 GB/s of random memory, where
finding zero pages by their hashes came to 2.5; 3 of memory that is all zero, instead of 0.2.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from workers.ranges import PAGE_SIZE, RangeTable

_WORDS = PAGE_SIZE // 8
_ZERO_PAGE = bytes(PAGE_SIZE)


class ZeroPages:
    """Remembers which pages of one guest were sent, on the source. `size` in bytes, whole pages."""

    def __init__(self, view: memoryview, size: int) -> None:
        # A numpy array of the whole view would keep the guest's memory from being unmapped: one is made for each look.
        self._view = view
        self._sent = np.zeros(size // PAGE_SIZE, np.bool_)

    def left_out(self, ranges: RangeTable) -> RangeTable:
        """`ranges` less the pages that are zero and were never sent; what stays counts as sent from now on.

        A page found zero that *was* sent before stays and is sent as zeroes, or the destination would keep its old
        content. A page that is written after this look is reported by the tracker, and looked at again.
        """
        pages = ranges.pages()
        probe = np.frombuffer(self._view, np.uint64)[::_WORDS]
        zero = self._zero(pages[(probe[pages] == 0) & ~self._sent[pages]])
        self._sent[pages] = True
        self._sent[zero] = False
        return ranges - RangeTable.from_pages(zero) if len(zero) else ranges

    def _zero(self, suspects: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Those of these pages that are zero to their last byte."""
        view = self._view
        found = [
            page
            for page in suspects.tolist()
            if view[page * PAGE_SIZE : (page + 1) * PAGE_SIZE].tobytes() == _ZERO_PAGE
        ]
        return np.array(found, np.int64)
