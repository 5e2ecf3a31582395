"""What the memory guest does with its RAM: the order of its writes, and the checks that tell whether any was lost.

The sequence number that each page must carry needs no table: pages are written in *sweeps*, each page once a sweep, in
an order that can be inverted, so that a handful of counters tells it. The counters are the guest's device state; its
RAM holds no copy of them. A page that was not moved after its last write is therefore seen as stale, wherever the copy
of it came from. A guest of any size has a device state of a few hundred bytes.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from workers.guests.memory_content import WORDS, Content, Damage, DamagedPage, Findings, count_of, mix
from workers.guests.memory_spec import Layout, MemoryGuestSpec, Words
from workers.ram import Ram
from workers.ranges import PAGE_SIZE, RangeTable

BATCH_PAGES = 64  # twice 256 KiB of scratch stay in the L2 cache; larger batches were no faster
#: About this much is written without looking at `interrupted`: 16 write faults served by a tracker take a few ms.
RUN_PAGES = 16
HOT_SHARE = 0.9  # of the writes go to
HOT_PART = 0.1  # of the used pages

# Foreign calls drop the interpreter lock: a thread that waits in a page fault (a tracker serves it) stops nobody else.
_libc = ctypes.CDLL(None)
_memcpy, _memcmp = _libc.memcpy, _libc.memcmp
_memcpy.argtypes, _memcpy.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t], ctypes.c_void_p
_memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]


class Shuffle:
    """A permutation of [0, rows·columns) that can be inverted anywhere without a table of its size.

    A Feistel network over the mixed radix (row, column): each round shifts one half by a table looked up with the
    other.
    """

    ROUNDS = 4

    def __init__(self, rows: int, columns: int, seed: int) -> None:
        self._rows, self._columns = np.uint64(rows), np.uint64(columns)
        self._shifts = []
        for turn in range(self.ROUNDS):
            size, modulus = (columns, rows) if turn % 2 == 0 else (rows, columns)
            salt = mix(np.array([seed * self.ROUNDS + turn], np.uint64))[0]
            self._shifts.append(mix(np.arange(size, dtype=np.uint64) ^ salt) % np.uint64(modulus))

    def forward(self, positions: Words) -> Words:
        """What stands at these positions of the order."""
        row, column = positions // self._columns, positions % self._columns
        for turn, shift in enumerate(self._shifts):
            if turn % 2 == 0:
                row = (row + shift[column]) % self._rows
            else:
                column = (column + shift[row]) % self._columns
        return row * self._columns + column

    def inverse(self, values: Words) -> Words:
        """The positions at which these stand."""
        row, column = values // self._columns, values % self._columns
        for turn, shift in reversed(list(enumerate(self._shifts))):
            if turn % 2 == 0:
                row = (row + self._rows - shift[column]) % self._rows
            else:
                column = (column + self._columns - shift[row]) % self._columns
        return row * self._columns + column


class Sweep:
    """Passes over a stretch of used pages, each page once a pass, in order or in a new random order each time.

    The pages beyond the largest rectangle that fits (less than its square root) are filled once and only checked from
    then on: the price of an order that can be inverted.
    """

    def __init__(self, first: int, count: int, share: float, seed: int | None) -> None:
        """`seed` None means in order; `share` is this stretch's part of all writes."""
        self.first, self.count, self.share = first, count, share
        self._seed = seed
        self._rows = max(1, math.isqrt(count))
        self._columns = count // self._rows
        self.span = self._rows * self._columns
        self.done = 0  # pages written so far, over all passes
        self._order: tuple[int, Shuffle] | None = None

    def _shuffle(self, turn: int) -> Shuffle | None:
        if self._seed is None:
            return None
        if self._order is None or self._order[0] != turn:
            self._order = (turn, Shuffle(self._rows, self._columns, ((self._seed << 20) + turn) % (1 << 60)))
        return self._order[1]

    def upcoming(self, limit: int) -> tuple[Words, int]:
        """The next pages to write (numbered as used pages, at most `limit`, of one pass), and what they hold now."""
        turn, at = divmod(self.done, self.span)
        positions = np.arange(at, min(at + limit, self.span), dtype=np.uint64)
        shuffle = self._shuffle(turn)
        offsets = positions if shuffle is None else shuffle.forward(positions)
        return offsets + np.uint64(self.first), 1 + turn

    def sequence(self, logical: Words) -> Words:
        """How often each of these pages of the stretch was written, the first fill included."""
        turn, at = divmod(self.done, self.span)
        offsets = logical - np.uint64(self.first)
        swept = offsets < self.span
        shuffle = self._shuffle(turn)
        positions = offsets if shuffle is None else shuffle.inverse(np.where(swept, offsets, np.uint64(0)))
        return np.where(swept, np.uint64(1 + turn) + (positions < at), np.uint64(1))


def sweeps_of(spec: MemoryGuestSpec, used: int) -> list[Sweep]:
    """The sweeps that make the pattern."""
    seed = None if spec.pattern == "sequential" else spec.seed
    hot = round(used * HOT_PART)
    if spec.pattern != "hot" or not 0 < hot < used:
        return [Sweep(0, used, 1.0, seed)]
    return [Sweep(0, hot, HOT_SHARE, seed), Sweep(hot, used - hot, 1 - HOT_SHARE, seed)]


class Workload:
    """Writes and checks one guest's memory. Not safe for use by two threads at once."""

    def __init__(self, spec: MemoryGuestSpec, ram: Ram) -> None:
        self.spec = spec
        self.layout = Layout.of(spec)
        self.content = Content(spec)
        #: Since the guest's birth, on whatever host; a page counts once until it is written anew.
        self.findings = Findings()
        self.filled = 0  # used pages below this number have been written at least once
        self._ram = ram
        self._sweeps = sweeps_of(spec, self.layout.used)
        self._scan_at = 0
        self._known_bad = np.zeros(spec.memory // PAGE_SIZE, np.bool_)
        self._old = np.empty((BATCH_PAGES, WORDS), np.uint64)
        self._new = np.empty((BATCH_PAGES, WORDS), np.uint64)

    @property
    def sequence(self) -> int:
        """Page writes since the guest was born."""
        return self.filled + sum(sweep.done for sweep in self._sweeps)

    @property
    def full(self) -> bool:
        """Whether each used page has been written once, so that the pattern is under way."""
        return self.filled == self.layout.used

    # -- writing

    def fill(self, interrupted: Callable[[], bool]) -> int:
        """Write the next used pages for the first time; returns how many."""
        logical = self._batch(self.filled, self.layout.used)
        pages = self.layout.page(logical)
        new = self.content.make(self._new, pages, np.ones_like(pages))
        written = self._store(pages, None, new, 0, interrupted)
        self.filled += written
        return written

    def write(self, limit: int, interrupted: Callable[[], bool]) -> int:
        """Check, then rewrite the next pages of the pattern, at most `limit`; returns how many were rewritten."""
        sweep = min(self._sweeps, key=lambda sweep: sweep.done / sweep.share)
        logical, sequence = sweep.upcoming(min(limit, BATCH_PAGES))
        pages = self.layout.page(logical)
        before = np.full_like(pages, sequence)
        old = self.content.make(self._old, pages, before)
        new = self.content.make(self._new, pages, before + np.uint64(1))
        written = self._store(pages, old, new, sequence, interrupted)
        sweep.done += written
        self.findings.pages_checked += written
        return written

    def _store(
        self, pages: Words, old: Words | None, new: Words, sequence: int, interrupted: Callable[[], bool]
    ) -> int:
        """Replace pages in order, in runs of neighbours; returns how many were done before an interruption."""
        done, base, source = len(pages), self._ram.address, new.ctypes.data
        check = 0 if old is None else old.ctypes.data
        numbers = pages.tolist()
        for start, stop in _runs(pages, RUN_PAGES):
            if interrupted():
                done = start
                break
            address, offset, size = base + numbers[start] * PAGE_SIZE, start * PAGE_SIZE, (stop - start) * PAGE_SIZE
            if old is not None and _memcmp(address, check + offset, size):
                self._learn(self._damaged(pages[start:stop], old[start:stop], [sequence] * (stop - start)))
            _memcpy(address, source + offset, size)
        self._known_bad[pages[:done]] = False
        return done

    @staticmethod
    def _batch(start: int, end: int) -> Words:
        return np.arange(start, min(start + BATCH_PAGES, end), dtype=np.uint64)

    # -- checking

    def check_next(self) -> int:
        """Check the next batch of the rolling scan; returns how many pages were looked at."""
        if self._scan_at >= self.filled:
            self._scan_at = 0
        logical = self._batch(self._scan_at, self.filled)
        self._scan_at += len(logical)
        self._learn(self._check(logical))
        self.findings.pages_checked += len(logical)
        return len(logical)

    def check_all(self) -> tuple[Findings, int]:
        """Check every page there is; the guest must not write meanwhile.

        Returns what was found, counted afresh (`findings` learns of it too), and how many pages are allocated though
        never written, but zero: they cost memory and corrupt nothing.
        """
        total = Findings()
        for start in range(0, self.filled, BATCH_PAGES):
            logical = self._batch(start, self.filled)
            for damaged in self._check(logical):
                total.note(damaged)
                self._learn([damaged])
            total.pages_checked += len(logical)
        self.findings.pages_checked += total.pages_checked
        return total, self._check_untouched(total)

    def _check(self, logical: Words) -> list[DamagedPage]:
        """The damaged ones among these used pages, all of which have been filled."""
        pages, expected = self.layout.page(logical), self._sequences(logical)
        rows = self.content.make(self._old, pages, expected)
        found = []
        for start, stop in _runs(pages, BATCH_PAGES):
            address = self._ram.address + int(pages[start]) * PAGE_SIZE
            if _memcmp(address, rows.ctypes.data + start * PAGE_SIZE, (stop - start) * PAGE_SIZE):
                found += self._damaged(pages[start:stop], rows[start:stop], expected[start:stop].tolist())
        return found

    def _check_untouched(self, total: Findings) -> int:
        """Look at what is allocated outside the pages written so far; returns the pages that are merely zero."""
        written = RangeTable.from_pages(self.layout.page(np.arange(self.filled, dtype=np.uint64)))
        zeros = 0
        for part in (self._ram.populated() - written).batches(BATCH_PAGES * PAGE_SIZE, PAGE_SIZE):
            for page in part.pages().tolist():
                if self._read(page).any():
                    damaged = DamagedPage(page, Damage.STRAY, 0, None)
                    total.note(damaged)
                    self._learn([damaged])
                else:
                    zeros += 1
        return zeros

    def _damaged(self, pages: Words, rows: Words, expected: Sequence[int]) -> list[DamagedPage]:
        found = []
        for page, row, sequence in zip(pages.tolist(), rows, expected, strict=True):
            words = self._read(page)
            if not np.array_equal(words, row):
                found.append(DamagedPage(page, *self.content.judge(words, page, sequence)))
        return found

    def _learn(self, damaged: Sequence[DamagedPage]) -> None:
        for each in damaged:
            if not self._known_bad[each.page]:
                self._known_bad[each.page] = True
                self.findings.note(each)

    def _read(self, page: int) -> Words:
        words = np.empty(WORDS, np.uint64)
        _memcpy(words.ctypes.data, self._ram.address + page * PAGE_SIZE, PAGE_SIZE)
        return words

    def _sequences(self, logical: Words) -> Words:
        found = np.zeros_like(logical)
        for sweep in self._sweeps:
            inside = (logical >= sweep.first) & (logical < sweep.first + sweep.count)
            if inside.any():
                found[inside] = sweep.sequence(logical[inside])
        return found

    # -- device state

    def to_state(self) -> dict[str, Any]:
        """The counters that tell what each page must hold, and what was found so far."""
        done = [sweep.done for sweep in self._sweeps]
        return {"filled": self.filled, "swept": done, "findings": self.findings.to_json()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from `to_state` of the same guest. Raises ValueError, TypeError or KeyError when it does not fit."""
        filled, swept = count_of(state["filled"]), [count_of(done) for done in state["swept"]]
        if filled > self.layout.used or len(swept) != len(self._sweeps) or (any(swept) and filled < self.layout.used):
            raise ValueError("the counters do not fit the guest's shape")
        self.findings = Findings.from_json(state["findings"])
        self.filled = filled
        for sweep, done in zip(self._sweeps, swept, strict=True):
            sweep.done = done


def _runs(pages: Words, limit: int) -> list[tuple[int, int]]:
    """Cut a list of pages into stretches [start, stop) of neighbours, each at most `limit` long."""
    if not len(pages):
        return []
    edges = [0, *(np.flatnonzero(pages[1:] - pages[:-1] != 1) + 1).tolist(), len(pages)]
    if len(edges) * 2 > len(pages):  # scattered: half a batch is the longest that a run can be
        return list(pairwise(edges))
    return [(at, min(at + limit, stop)) for start, stop in pairwise(edges) for at in range(start, stop, limit)]
