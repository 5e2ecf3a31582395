"""PageRange and RangeTable: the one noun that travels the whole path, from the dirty bitmap to the wire.

Addresses are QEMU's `ram_addr_t`: the guest's RAM blocks laid end to end in one flat space that starts at 0, in bytes.
A table is immutable, sorted, disjoint and coalesced (touching ranges are one), so equal memory is an equal table.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

#: The unit of dirty tracking and of checks on every machine that we run on (x86-64 and arm64 with 4 KiB pages).
PAGE_SIZE = 4096

Bounds = npt.NDArray[np.int64]
_Whole = TypeVar("_Whole", bound=np.integer)
"""Shape (n, 2): start and end of each range, in bytes; end is exclusive."""


class PageRange(NamedTuple):
    """Bytes [start, end) of the guest's memory."""

    start: int
    end: int

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self.end - self.start


class RangeTable:
    """An immutable set of bytes of guest memory, kept as sorted, disjoint, coalesced ranges."""

    __slots__ = ("bounds",)

    bounds: Bounds

    def __init__(self, pairs: Iterable[tuple[int, int]] | Bounds = ()) -> None:
        """Normalise `pairs` of (start, end) in any order, overlapping or not; empty ranges are dropped.

        Raises ValueError when a range ends before it starts or starts below 0.
        """
        raw = pairs if isinstance(pairs, np.ndarray) else np.array(list(pairs), np.int64).reshape(-1, 2)
        self.bounds = _normalised(raw.astype(np.int64, copy=False))
        self.bounds.setflags(write=False)

    @classmethod
    def _trusted(cls, bounds: Bounds) -> RangeTable:
        """Take bounds that are already normal: the algebra below keeps them so."""
        table = cls.__new__(cls)
        table.bounds = bounds
        bounds.setflags(write=False)
        return table

    @classmethod
    def from_pages(cls, pages: npt.NDArray[np.integer], page_size: int = PAGE_SIZE) -> RangeTable:
        """The ranges that cover the pages with these indices (any order, repeats allowed)."""
        starts = ascending(pages).astype(np.int64) * page_size
        return cls._trusted(_coalesced(np.stack([starts, starts + page_size], 1)))

    @classmethod
    def from_bitmap(cls, bits: npt.NDArray[np.bool_], page_size: int = PAGE_SIZE) -> RangeTable:
        """The ranges whose pages are set in `bits` (shape: one bool per page, page 0 first)."""
        edges = np.diff(np.concatenate(([False], bits, [False])).astype(np.int8))
        bounds = np.stack([np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)], 1)
        return cls._trusted(bounds.astype(np.int64) * page_size)

    @classmethod
    def from_bytes(cls, data: bytes | memoryview) -> RangeTable:
        """Decode `to_bytes`. Raises ValueError on a truncated, unsorted or overlapping table."""
        if len(data) % 16:
            raise ValueError(f"a range table is 16 bytes a range, got {len(data)} bytes")
        raw = np.frombuffer(data, ">u8")
        if raw.size and int(raw.max()) >= 1 << 63:
            raise ValueError("a range lies beyond 2^63")
        bounds = raw.astype(np.int64).reshape(-1, 2)
        if (bounds[:, 0] >= bounds[:, 1]).any() or (bounds[1:, 0] <= bounds[:-1, 1]).any():
            raise ValueError("a range table must be sorted, disjoint and coalesced")
        return cls._trusted(bounds)

    def to_bytes(self) -> bytes:
        """Big-endian pairs of u64, 16 bytes a range."""
        return self.bounds.astype(">u8").tobytes()

    @property
    def size(self) -> int:
        """Bytes covered."""
        return int((self.bounds[:, 1] - self.bounds[:, 0]).sum())

    def __len__(self) -> int:
        return len(self.bounds)

    def __iter__(self) -> Iterator[PageRange]:
        return (PageRange(start, end) for start, end in self.bounds.tolist())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RangeTable) and np.array_equal(self.bounds, other.bounds)

    def __hash__(self) -> int:
        return hash(self.bounds.tobytes())

    def __repr__(self) -> str:
        return f"<{len(self)} ranges, {self.size} bytes>"

    def __or__(self, other: RangeTable) -> RangeTable:
        """Bytes in either."""
        return RangeTable(np.concatenate([self.bounds, other.bounds]))

    def __and__(self, other: RangeTable) -> RangeTable:
        """Bytes in both."""
        return RangeTable._trusted(_overlap(self, other, both=True))

    def __sub__(self, other: RangeTable) -> RangeTable:
        """Bytes of this table that the other has not."""
        return RangeTable._trusted(_overlap(self, other, both=False))

    def pages(self, page_size: int = PAGE_SIZE) -> npt.NDArray[np.int64]:
        """Indices of the pages that these ranges touch, ascending."""
        first, last = self.bounds[:, 0] // page_size, -(-self.bounds[:, 1] // page_size)
        first[1:] = np.maximum(first[1:], last[:-1])  # neighbours may share a page
        return _spread(first, last - first)

    def aligned(self, unit: int) -> RangeTable:
        """The same ranges grown outwards to multiples of `unit` bytes."""
        grown = np.stack([self.bounds[:, 0] // unit * unit, -(-self.bounds[:, 1] // unit) * unit], 1)
        return RangeTable(grown)

    def clipped(self, size: int) -> RangeTable:
        """What lies below `size` bytes."""
        if not len(self.bounds) or self.bounds[-1, 1] <= size:
            return self
        return self & RangeTable([(0, size)])

    def split(self, unit: int) -> Bounds:
        """Cut at every multiple of `unit` bytes, so that no piece crosses one. Shape (m, 2)."""
        first, last = self.bounds[:, 0] // unit, -(-self.bounds[:, 1] // unit)
        count = last - first
        row = np.repeat(np.arange(len(count)), count)
        cell = _spread(first, count)
        starts = np.maximum(self.bounds[row, 0], cell * unit)
        ends = np.minimum(self.bounds[row, 1], (cell + 1) * unit)
        return np.stack([starts, ends], 1)

    def cut(self, points: npt.NDArray[np.int64]) -> Bounds:
        """Cut at `points` (sorted, bytes), so that no piece crosses one. Shape (m, 2)."""
        first = np.searchsorted(points, self.bounds[:, 0], "right")
        count = np.searchsorted(points, self.bounds[:, 1], "left") - first
        row = np.repeat(np.arange(len(count)), count + 1)
        nth = _spread(np.zeros(len(count), np.int64), count + 1)
        fence = np.concatenate((points, [0]))  # the last entry is never chosen; it keeps the look-up in bounds
        starts = np.where(nth == 0, self.bounds[row, 0], fence[first[row] + nth - 1])
        ends = np.where(nth == count[row], self.bounds[row, 1], fence[np.minimum(first[row] + nth, len(points))])
        return np.stack([starts, ends], 1)

    def batches(self, limit: int, unit: int) -> Iterator[RangeTable]:
        """Consecutive parts of at most `limit` bytes each, cut at multiples of `unit` (`limit` ≥ `unit`)."""
        pieces = self.split(unit)
        total = np.cumsum(pieces[:, 1] - pieces[:, 0])
        at = 0
        while at < len(pieces):
            done = int(total[at - 1]) if at else 0
            upto = max(at + 1, int(np.searchsorted(total, done + limit, "right")))
            yield RangeTable._trusted(_coalesced(pieces[at:upto]))
            at = upto


def _spread(first: npt.NDArray[np.int64], count: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Concatenate the runs first[i], first[i]+1, … of count[i] numbers each, without a Python loop."""
    if not len(count):
        return np.zeros(0, np.int64)
    skipped = np.cumsum(count) - count
    spread: npt.NDArray[np.int64] = np.arange(int(count.sum()), dtype=np.int64) + np.repeat(first - skipped, count)
    return spread


def _normalised(raw: Bounds) -> Bounds:
    if len(raw) and ((raw[:, 1] < raw[:, 0]).any() or (raw[:, 0] < 0).any()):
        raise ValueError("a range must start at 0 or above and not end before it starts")
    raw = raw[raw[:, 1] > raw[:, 0]]
    if (raw[1:, 0] < raw[:-1, 0]).any():
        raw = raw[np.argsort(raw[:, 0], kind="stable")]
    return _coalesced(raw)


def _coalesced(ordered: Bounds) -> Bounds:
    """Join ranges, sorted by start, that touch or overlap."""
    if not len(ordered):
        return np.zeros((0, 2), np.int64)
    reach = np.maximum.accumulate(ordered[:, 1])
    head = np.concatenate(([True], ordered[1:, 0] > reach[:-1]))
    heads = np.flatnonzero(head)
    tails = np.concatenate((heads[1:] - 1, [len(ordered) - 1]))
    return np.stack([ordered[heads, 0], reach[tails]], 1)


def _overlap(mine: RangeTable, other: RangeTable, *, both: bool) -> Bounds:
    """Sweep over all edges, counting which of the two tables covers each stretch between neighbours."""
    edges = np.concatenate([mine.bounds.ravel(), other.bounds.ravel()])
    mine_steps = np.concatenate([np.tile([1, -1], len(mine)), np.zeros(2 * len(other), np.int64)])
    other_steps = np.concatenate([np.zeros(2 * len(mine), np.int64), np.tile([1, -1], len(other))])
    order = np.argsort(edges, kind="stable")
    edges, in_mine, in_other = edges[order], np.cumsum(mine_steps[order]), np.cumsum(other_steps[order])
    wanted = (in_mine > 0) & ((in_other > 0) if both else (in_other == 0))
    stretch = np.flatnonzero(wanted[:-1] & (edges[1:] > edges[:-1]))
    return _coalesced(np.stack([edges[stretch], edges[stretch + 1]], 1))


EMPTY = RangeTable()


def ascending(numbers: npt.NDArray[_Whole]) -> npt.NDArray[_Whole]:
    """Each number once, in order. Most callers have them so: looking is 20 times cheaper than sorting.

    numpy's `unique` hashes, which costs more than sorting here, and imports a package of 40 ms when first called.
    """
    if (numbers[1:] > numbers[:-1]).all():
        return numbers
    ordered = np.sort(numbers)
    return ordered[np.concatenate(([True], ordered[1:] > ordered[:-1]))]
