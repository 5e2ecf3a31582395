"""A disk whose every page can be checked: made for the witness of ops/vm/disk.c, and judged once that has ended.

A page is as ops/vm/page.h says: its number, how often it was written, words that follow from both, and their sum.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tests.requirements import missing
from workers.ranges import PAGE_SIZE

#: Pages of a block, which is read and written as one.
BLOCK = 16
_WORDS = PAGE_SIZE // 8
_STEP = np.uint64(0x9E3779B97F4A7C15)

Pages = npt.NDArray[np.uint64]
"""One row of 512 words a page."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What is on a disk: `writes` of whole blocks, and `bad` blocks, torn or not as they were written."""

    writes: int
    bad: int


def make_disk(path: Path, mib: int = 32) -> Path:
    """A disk of pages that were never written, its file without holes. Skips where none can go past the page cache."""
    number = np.arange(mib << 8, dtype=np.uint64)
    _pages(number, np.zeros_like(number)).tofile(path)
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    try:
        os.close(os.open(path, os.O_RDWR | os.O_DIRECT))
    except OSError as error:
        missing(f"disks with cache=none cannot be in {path.parent} ({error.strerror})")
    return path


def judge_disk(path: Path) -> Judged:
    """Look at every block of a disk that nobody uses any more."""
    found = np.fromfile(path, np.uint64).reshape(-1, _WORDS)
    writes = found[:, 1].reshape(-1, BLOCK)
    good = (found == _pages(np.arange(len(found), dtype=np.uint64), found[:, 1])).all(axis=1).reshape(-1, BLOCK)
    whole = good.all(axis=1) & (writes == writes[:, :1]).all(axis=1)
    whole[: len(whole) // 2] &= writes[: len(whole) // 2, 0] == 0  # the half that is only read
    return Judged(int(writes[whole, 0].sum()), int((~whole).sum()))


def _pages(number: Pages, writes: Pages) -> Pages:
    """The pages of these numbers, written so often each."""
    pages = np.empty((len(number), _WORDS), np.uint64)
    pages[:, 0], pages[:, 1] = number, writes
    steps = np.arange(1, _WORDS - 2, dtype=np.uint64)
    words = ((number << np.uint64(32) | writes)[:, None] + steps) * _STEP
    pages[:, 2:-1] = words ^ words >> np.uint64(29)
    pages[:, -1] = pages[:, 2:-1].sum(axis=1) + number + writes * np.uint64(31)
    return pages
