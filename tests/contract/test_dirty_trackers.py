"""The promise of every dirty tracker, held against a real process that writes real memory."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
import pytest

from config.errors import HostError
from tests.contract.tracked_guest import MIB, ROOT, Copy, TrackedGuest
from workers.dirty import kernel
from workers.dirty.content import ContentTracker, digests
from workers.dirty.contract import DirtyTracker
from workers.dirty.forgetful import Forgetful
from workers.dirty.pagemap_scan import PagemapScanTracker
from workers.dirty.trial import OwnMemory
from workers.dirty.userfaultfd import UserfaultfdTracker
from workers.ram import Ram
from workers.ranges import EMPTY, PAGE_SIZE, RangeTable

PAGES = [0, 1, 7, 500, 511, 512, 1023]


@cache
def why_not(factory: type) -> str | None:
    try:
        factory.self_test()
    except HostError as error:
        return str(error)
    return None


def need(factory: type) -> None:
    reason = why_not(factory)
    if reason:
        (pytest.fail if os.environ.get("DROVEWAY_REQUIRE_ALL") == "1" else pytest.skip)(reason)


@pytest.fixture(
    params=[
        pytest.param(PagemapScanTracker, marks=pytest.mark.kernel),
        pytest.param(UserfaultfdTracker, marks=pytest.mark.kernel),
        ContentTracker,
    ],
    ids=lambda factory: factory.kind,
)
def factory(request: pytest.FixtureRequest) -> type:
    need(request.param)
    return request.param


@pytest.fixture(
    params=[
        pytest.param(PagemapScanTracker, marks=pytest.mark.kernel),
        pytest.param(UserfaultfdTracker, marks=pytest.mark.kernel),
    ],
    ids=lambda factory: factory.kind,
)
def protecting(request: pytest.FixtureRequest) -> type:
    """The trackers that act on the guest's page tables."""
    need(request.param)
    return request.param


@pytest.fixture
def make_guest() -> Iterator[Callable[..., tuple[TrackedGuest, Ram]]]:
    made: list[tuple[TrackedGuest, Ram]] = []

    def make(*sizes: int, **shape: object) -> tuple[TrackedGuest, Ram]:
        guest = TrackedGuest(*sizes, **shape)
        made.append((guest, Ram(guest.block_files())))
        return made[-1]

    yield make
    for guest, _ in made:  # the copies' views keep the mapping alive until they are collected themselves
        guest.quit()


@pytest.fixture
def tracking() -> Iterator[Callable[[type, TrackedGuest, Ram], DirtyTracker]]:
    started: list[DirtyTracker] = []

    def start(factory: type, guest: TrackedGuest, ram: Ram, **options: object) -> DirtyTracker:
        tracker = factory(guest, ram, **options)
        started.append(tracker)
        tracker.start()
        return tracker

    yield start
    for tracker in started:
        tracker.close()


def wait_for_progress(guest: TrackedGuest) -> None:
    """Until the guest has written more pages than it has now; the test's own time limit ends a hang."""
    before = guest.ask("progress")
    while guest.ask("progress") <= before + 100:
        time.sleep(0.005)


def move(guest: TrackedGuest, ram: Ram, tracker: DirtyTracker, rounds: int) -> Copy:
    """Pre-copy in miniature: bulk, rounds while the guest writes, a last one while it does not."""
    copy = Copy(ram)
    copy.follow(ram.populated())
    for _ in range(rounds):
        wait_for_progress(guest)
        copy.follow(tracker.collect())
    wait_for_progress(guest)  # so that there is something to miss
    guest.stop()
    copy.follow(tracker.collect())
    return copy


def test_each_written_page_is_reported_in_its_round_and_not_again(factory, make_guest, tracking):
    guest, ram = make_guest(8 * MIB)
    guest.write(list(range(2048)), 1)
    tracker = tracking(factory, guest, ram)
    for value in (2, 3, 4):
        written = guest.write(PAGES, value)
        assert written - tracker.collect() == EMPTY
        if not tracker.reads_everything:
            assert tracker.collect() == EMPTY


def test_pagemap_scan_reports_to_the_page(make_guest, tracking):
    need(PagemapScanTracker)
    guest, ram = make_guest(8 * MIB)
    tracker = tracking(PagemapScanTracker, guest, ram)
    assert guest.write(PAGES, 2) == tracker.collect()


def test_first_writes_to_memory_that_never_held_anything_are_reported(factory, make_guest, tracking):
    guest, ram = make_guest(8 * MIB)
    tracker = tracking(factory, guest, ram)
    assert guest.write(PAGES, 1) - tracker.collect() == EMPTY
    assert guest.write([2000], 1) - tracker.collect() == EMPTY


def test_blocks_and_mappings_in_pieces_are_put_together_in_ram_addr_order(factory, make_guest, tracking):
    guest, ram = make_guest(4 * MIB, 3 * MIB, piece=2 * MIB)
    tracker = tracking(factory, guest, ram)
    per_mib = MIB // PAGE_SIZE
    table = guest.write([0, 2 * per_mib, 4 * per_mib - 1, 4 * per_mib, 6 * per_mib, 7 * per_mib - 1], 1)
    reported = tracker.collect()
    assert table - reported == EMPTY
    assert reported - RangeTable([(0, 7 * MIB)]) == EMPTY
    assert reported.size <= 6 * (64 << 10)


@pytest.mark.parametrize("pattern", ["random", "sequential", "toggle"])
def test_a_copy_that_follows_the_tables_of_a_busy_guest_is_exact(factory, pattern, make_guest, tracking):
    guest, ram = make_guest(64 * MIB)
    guest.write(list(range(8192)), 1)
    guest.run(pattern)
    tracker = tracking(factory, guest, ram)
    assert move(guest, ram, tracker, rounds=6).differing_pages() == 0


def test_forgetting_the_last_table_is_caught_by_the_same_comparison(protecting, make_guest, tracking):
    guest, ram = make_guest(64 * MIB)
    guest.run("random")
    tracker = tracking(lambda *given: Forgetful(protecting(*given)), guest, ram)
    assert move(guest, ram, tracker, rounds=3).differing_pages() > 0


def test_content_compared_with_what_the_destination_holds_is_exact_and_finds_a_byte_that_went_there_and_back(
    make_guest, tracking
):
    guest, ram = make_guest(8 * MIB)
    guest.write(list(range(1024)), 1)
    copy = Copy(ram)
    tracker = tracking(ContentTracker, guest, ram, held=lambda: lambda: copy_digests(copy, guest))
    copy.follow(ram.populated())
    assert tracker.collect() == EMPTY
    guest.write([700], 2)
    copy.follow(RangeTable.from_pages(np.array([700])))
    guest.write([700], 1)  # as it was when last looked at, while the destination has the other
    table = tracker.collect()
    assert table == RangeTable.from_pages(np.array([700])).aligned(64 << 10)
    copy.follow(table)
    assert copy.differing_pages() == 0


def copy_digests(copy: Copy, like: TrackedGuest) -> np.ndarray:
    twin = TrackedGuest(*(file.block.size for file in like.block_files()))
    try:
        ram = Ram(twin.block_files())
        ram.view[:] = copy.memory.tobytes()
        found = digests(ram)
        ram.close()
        return found
    finally:
        twin.quit()


def test_content_does_not_populate_the_holes_that_it_reads(make_guest):
    guest, ram = make_guest(8 * MIB)
    guest.write([3, 900], 1)
    before = ram.populated()
    digests(ram)
    assert ram.populated() == before
    assert before.size == 2 * PAGE_SIZE


def test_after_close_the_guest_writes_on_and_can_be_tracked_again(factory, make_guest, tracking):
    guest, ram = make_guest(16 * MIB)
    guest.run("random")
    for _ in range(3):
        tracker = tracking(factory, guest, ram)
        wait_for_progress(guest)
        assert tracker.collect() != EMPTY
        tracker.close()
        tracker.close()
        wait_for_progress(guest)
        with pytest.raises(HostError, match="closed"):
            tracker.collect()


def test_a_guest_outlives_a_killed_worker_and_the_next_worker_can_track_it(factory, make_guest, tracking):
    guest, ram = make_guest(16 * MIB)
    guest.run("random")
    for _ in range(3):
        uffd = guest.userfaultfd()
        path = str(guest.block_files()[0].path)
        arguments = [factory.kind, str(guest.pid), str(uffd), path, str(16 * MIB)]
        with subprocess.Popen(
            [sys.executable, "-m", "tests.contract.tracker_holder", *arguments],
            pass_fds=[uffd],
            stdout=subprocess.PIPE,
            cwd=ROOT,
        ) as holder:
            os.close(uffd)  # the holder's is the last: its death must end the tracking
            assert holder.stdout is not None
            assert [holder.stdout.readline() for _ in range(3)][-1]
            holder.kill()
        wait_for_progress(guest)
    tracker = tracking(factory, guest, ram)
    assert move(guest, ram, tracker, rounds=2).differing_pages() == 0


def test_a_guest_that_dies_while_tracked_is_reported(protecting, make_guest, tracking):
    guest, ram = make_guest(8 * MIB)
    tracker = tracking(protecting, guest, ram)
    guest.write(PAGES, 1)
    guest.process.kill()
    guest.process.wait()
    with pytest.raises(HostError, match="ended"):
        tracker.collect()
    tracker.close()


def test_memory_that_is_not_shared_is_refused(protecting, make_guest, tracking):
    guest, ram = make_guest(8 * MIB, shared=False)
    with pytest.raises(HostError, match="share=on"):
        tracking(protecting, guest, ram)


def test_no_child_of_the_worker_inherits_what_holds_the_guest(protecting, make_guest, tracking):
    guest, ram = make_guest(8 * MIB)
    uffd = guest.userfaultfd()
    os.set_inheritable(uffd, True)
    guest.userfaultfd = lambda: uffd
    tracking(protecting, guest, ram)
    assert not os.get_inheritable(uffd)


@pytest.mark.kernel
def test_writes_by_the_kernel_are_seen_by_pagemap_scan(make_guest, tracking):
    need(PagemapScanTracker)
    guest, ram = make_guest(8 * MIB)
    tracker = tracking(PagemapScanTracker, guest, ram)
    assert guest.ask("receive", page=5) == ""
    assert tracker.collect() == RangeTable.from_pages(np.array([5]))


@pytest.mark.kernel
def test_writes_by_the_kernel_fail_under_served_faults_as_choose_assumes(make_guest, tracking):
    need(UserfaultfdTracker)
    guest, ram = make_guest(8 * MIB)
    tracker = tracking(UserfaultfdTracker, guest, ram)
    assert not tracker.sees_kernel_writes
    assert guest.ask("receive", page=5) == "Bad address"


@pytest.mark.kernel
def test_a_guest_goes_on_when_the_thread_that_serves_its_faults_fails(make_guest, tracking, monkeypatch):
    need(UserfaultfdTracker)
    guest, ram = make_guest(8 * MIB)
    tracker = tracking(UserfaultfdTracker, guest, ram)

    def broken(fd: int) -> list[int]:
        raise RuntimeError("out of order")

    monkeypatch.setattr(kernel, "read_faults", broken)
    guest.write(PAGES, 1)  # answers: the write was let through
    with pytest.raises(HostError, match="out of order"):
        tracker.collect()


@pytest.mark.kernel
def test_a_table_larger_than_the_kernels_buffer_is_complete(make_guest, tracking, monkeypatch):
    need(PagemapScanTracker)
    monkeypatch.setattr(kernel, "_SCAN_REGIONS", 5)
    guest, ram = make_guest(8 * MIB)
    tracker = tracking(PagemapScanTracker, guest, ram)
    assert guest.write(list(range(0, 2048, 2)), 1) == tracker.collect()
    assert tracker.collect() == EMPTY


@pytest.mark.kernel
def test_the_hole_detector_finds_and_protects_page_tables_that_were_dropped_whole(make_guest, tracking):
    need(PagemapScanTracker)
    memory = OwnMemory()
    ram = Ram(memory.block_files())
    tracker = tracking(PagemapScanTracker, memory, ram)
    end = 2 * MIB
    memory.fill(0, end, 1)
    memory.advise(0, end, 4)  # MADV_DONTNEED: written, and dropped from the page table
    scanner = kernel.PagemapScanner(os.getpid())
    dropped = np.array([[memory.address, memory.address + end]])
    assert np.array_equal(scanner.take_holes(memory.address, memory.address + memory.size), dropped)
    assert not len(scanner.take_holes(memory.address, memory.address + memory.size))
    scanner.close()
    tracker.close()
    ram.close()
    memory.close()
