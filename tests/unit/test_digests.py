"""`verify-ram`: the comparison before READY finds what differs."""

import numpy as np

from workers.digests import PageDigests, differing
from workers.ranges import PAGE_SIZE, RangeTable

PAGES, CHUNK = 64, 16 * PAGE_SIZE
EVERYTHING = RangeTable([(0, PAGES * PAGE_SIZE)])


def memory(seed: int = 1) -> bytearray:
    return bytearray(np.random.default_rng(seed).integers(1, 255, PAGES * PAGE_SIZE, dtype=np.uint8).tobytes())


def digests(content: bytearray) -> PageDigests:
    return PageDigests(memoryview(content), len(content))


def page(number: int) -> RangeTable:
    return RangeTable([(number * PAGE_SIZE, (number + 1) * PAGE_SIZE)])


def test_equal_memory_is_equal_and_a_flipped_bit_names_its_chunk() -> None:
    here, there = memory(), memory()
    there[37 * PAGE_SIZE + 5] ^= 1
    mine, theirs = digests(here), digests(there)
    mine.update(EVERYTHING)
    theirs.update(EVERYTHING)
    assert [tuple(wrong) for wrong in differing(mine.rollup(CHUNK), theirs.rollup(CHUNK), CHUNK)] == [
        (2 * CHUNK, 3 * CHUNK)
    ]


def test_two_swapped_pages_differ_though_each_is_known() -> None:
    here, there = memory(), memory()
    there[:PAGE_SIZE], there[PAGE_SIZE : 2 * PAGE_SIZE] = here[PAGE_SIZE : 2 * PAGE_SIZE], here[:PAGE_SIZE]
    mine, theirs = digests(here), digests(there)
    mine.update(EVERYTHING)
    theirs.update(EVERYTHING)
    assert differing(mine.rollup(CHUNK), theirs.rollup(CHUNK), CHUNK)


def test_a_page_that_one_side_never_got_differs() -> None:
    content = memory()
    mine, theirs = digests(content), digests(content)
    mine.update(EVERYTHING)
    theirs.update(EVERYTHING - page(9))
    assert [tuple(wrong) for wrong in differing(mine.rollup(CHUNK), theirs.rollup(CHUNK), CHUNK)] == [(0, CHUNK)]


def test_tables_of_other_shapes_differ_as_a_whole() -> None:
    assert differing(np.zeros(3, np.uint64), np.zeros(4, np.uint64), CHUNK)
