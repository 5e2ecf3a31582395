"""How much a served fault unprotects, and what is protected again in one call."""

from __future__ import annotations

import numpy as np
import pytest

from workers.dirty.mappings import GuestMapping
from workers.dirty.userfaultfd import joined, stretch
from workers.ranges import PAGE_SIZE

HUGE = 2 << 20


def pages(count: int, *marked: int) -> np.ndarray:
    written = np.zeros(count, np.bool_)
    written[list(marked)] = True
    return written


def served(page: int, written: np.ndarray) -> list[int]:
    mapping = GuestMapping(1 << 40, 0, len(written) * PAGE_SIZE, PAGE_SIZE)
    low, high = stretch([mapping], mapping.address + page * PAGE_SIZE, written)
    return list(range(low // PAGE_SIZE, high // PAGE_SIZE))


def test_a_lone_write_unprotects_its_page_alone():
    assert served(5, pages(16)) == [5]
    assert served(5, pages(16, 3)) == [5]


def test_a_run_of_writes_is_given_as_much_again_up_to_the_end_of_memory():
    assert served(5, pages(16, 4)) == [5]
    assert served(5, pages(16, 2, 3, 4)) == [5, 6, 7]
    assert served(4, pages(16, 0, 1, 2, 3)) == [4, 5, 6, 7]
    assert served(14, pages(16, 10, 11, 12, 13)) == [14, 15]


def test_a_long_run_is_given_a_mebibyte():
    assert len(served(2000, pages(4096, *range(2000)))) == 256


def test_huge_pages_are_unprotected_whole_as_the_kernel_insists():
    mapping = GuestMapping(1 << 40, HUGE, 2 * HUGE, HUGE)
    written = np.zeros(3 * HUGE // PAGE_SIZE, np.bool_)
    assert stretch([mapping], mapping.address + HUGE + 7 * PAGE_SIZE, written) == (2 * HUGE, 3 * HUGE)
    written[512:1024] = True
    assert stretch([mapping], mapping.address + HUGE, written) == (2 * HUGE, 3 * HUGE)


def test_a_run_does_not_reach_over_from_another_mapping():
    mappings = [
        GuestMapping(1 << 40, 0, 4 * PAGE_SIZE, PAGE_SIZE),
        GuestMapping(1 << 41, 4 * PAGE_SIZE, 1 << 20, PAGE_SIZE),
    ]
    assert stretch(mappings, 1 << 41, pages(260, 0, 1, 2, 3)) == (4 * PAGE_SIZE, 5 * PAGE_SIZE)


def test_a_fault_outside_the_ram_is_not_served_silently():
    with pytest.raises(ValueError, match="outside"):
        stretch([], 4096, pages(1))


def test_marks_close_together_are_protected_in_one_call_and_all_are_covered():
    written = pages(1000, 0, 1, 40, 300, 999)
    assert joined(written) == [
        (0, 41 * PAGE_SIZE),
        (300 * PAGE_SIZE, 301 * PAGE_SIZE),
        (999 * PAGE_SIZE, 1000 * PAGE_SIZE),
    ]
    assert joined(pages(10)) == []
