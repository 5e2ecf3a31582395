"""Hashes of guest memory, and what the content tracker owes without and with the destination's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from config.errors import HostError
from workers.dirty.content import CHUNK, ContentTracker, digests
from workers.ram import BlockFile, Ram, RamBlock
from workers.ranges import PAGE_SIZE, RangeTable


@pytest.fixture
def ram() -> Iterator[Ram]:
    fds = [os.memfd_create("ram") for _ in range(2)]
    sizes = [CHUNK + 2 * PAGE_SIZE, 3 * CHUNK]  # a chunk lies across the two files, the last is short
    for fd, size in zip(fds, sizes, strict=True):
        os.ftruncate(fd, size)
    files = [
        BlockFile(RamBlock(str(fd), size), Path(f"/proc/self/fd/{fd}")) for fd, size in zip(fds, sizes, strict=True)
    ]
    mapped = Ram(files)
    yield mapped
    mapped.close()
    for fd in fds:
        os.close(fd)


def test_a_hole_has_the_digest_of_the_zeros_it_reads_as(ram):
    empty = digests(ram)
    assert len(empty) == 5
    assert not ram.populated()
    ram.view[:] = bytes(ram.size)
    assert np.array_equal(digests(ram), empty)


@pytest.mark.parametrize("at", [0, CHUNK - 1, CHUNK, CHUNK + 2 * PAGE_SIZE - 1, CHUNK + 2 * PAGE_SIZE, -1])
def test_any_changed_byte_changes_its_own_chunks_digest_only(ram, at):
    before = digests(ram)
    position = at % ram.size
    ram.view[position] = 1
    assert np.flatnonzero(digests(ram) != before).tolist() == [position // CHUNK]


def test_without_the_destinations_digests_everything_that_ever_held_data_is_owed(ram):
    ram.view[0] = 1
    tracker = ContentTracker(None, ram)
    tracker.start()
    os.truncate(f"/proc/self/fd/{ram.extents(0, 1)[0].fd}", 0)  # discarded: the destination holds it still
    os.truncate(f"/proc/self/fd/{ram.extents(0, 1)[0].fd}", CHUNK + 2 * PAGE_SIZE)
    ram.view[-1] = 1
    assert tracker.collect() == RangeTable([(0, PAGE_SIZE), (ram.size - PAGE_SIZE, ram.size)])


def test_with_them_only_differing_chunks_are_reported_never_beyond_the_memory(ram):
    empty = digests(ram)
    tracker = ContentTracker(None, ram, held=lambda: lambda: empty)
    tracker.start()
    assert not tracker.collect()
    ram.view[CHUNK] = 1
    ram.view[-1] = 1
    assert tracker.collect() == RangeTable([(CHUNK, 2 * CHUNK), (4 * CHUNK, ram.size)])


def test_a_closed_tracker_says_so(ram):
    with pytest.raises(HostError, match="closed"):
        ContentTracker(None, ram).collect()
