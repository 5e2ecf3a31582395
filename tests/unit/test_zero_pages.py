"""Zero pages are left out only when the destination's fresh memory has them already."""

import numpy as np
import pytest

from workers.digests import PageDigests, differing
from workers.ranges import EMPTY, PAGE_SIZE, RangeTable
from workers.rounds.zero_pages import ZeroPages

PAGES, CHUNK = 64, 16 * PAGE_SIZE
EVERYTHING = RangeTable([(0, PAGES * PAGE_SIZE)])


def memory() -> bytearray:
    return bytearray(np.random.default_rng(1).integers(1, 255, PAGES * PAGE_SIZE, dtype=np.uint8).tobytes())


def zero_pages(content: bytearray) -> ZeroPages:
    return ZeroPages(memoryview(content), len(content))


def page(number: int) -> RangeTable:
    return RangeTable([(number * PAGE_SIZE, (number + 1) * PAGE_SIZE)])


def clear(content: bytearray, number: int) -> None:
    content[number * PAGE_SIZE : (number + 1) * PAGE_SIZE] = bytes(PAGE_SIZE)


def test_zero_pages_that_were_never_sent_are_left_out_and_only_of_what_was_asked() -> None:
    content = memory()
    for number in (0, 5, 6, 30, 63):
        clear(content, number)
    asked = RangeTable([(0, 8 * PAGE_SIZE), (20 * PAGE_SIZE, 40 * PAGE_SIZE), (63 * PAGE_SIZE, 64 * PAGE_SIZE)])
    assert zero_pages(content).left_out(asked) == asked - page(0) - page(5) - page(6) - page(30) - page(63)


def test_nothing_is_left_of_memory_that_is_all_zero() -> None:
    assert zero_pages(bytearray(PAGES * PAGE_SIZE)).left_out(EVERYTHING) == EMPTY


def test_a_page_left_out_once_is_looked_at_again() -> None:
    content = memory()
    clear(content, 5)
    mine = zero_pages(content)
    mine.left_out(EVERYTHING)
    assert mine.left_out(page(5)) == EMPTY
    content[5 * PAGE_SIZE] = 1
    assert mine.left_out(page(5)) == page(5)


def test_a_page_that_became_zero_after_it_was_sent_is_sent_as_zeroes() -> None:
    content = memory()
    mine = zero_pages(content)
    mine.left_out(EVERYTHING)
    clear(content, 5)
    assert mine.left_out(page(5)) == page(5), "else the destination would keep the old content"


def test_a_page_left_out_counts_as_never_sent_on_both_sides() -> None:
    content = memory()
    clear(content, 5)
    kept = zero_pages(content).left_out(EVERYTHING)
    here = PageDigests(memoryview(content), len(content))
    there = PageDigests(memoryview(content), len(content))
    here.update(kept)
    there.update(EVERYTHING - page(5))
    assert not differing(here.rollup(CHUNK), there.rollup(CHUNK), CHUNK)


@pytest.mark.parametrize("offset", [0, 7, 8, PAGE_SIZE // 2, PAGE_SIZE - 1])
def test_a_page_with_one_byte_set_is_not_zero(offset: int) -> None:
    content = bytearray(PAGES * PAGE_SIZE)
    content[7 * PAGE_SIZE + offset] = 1
    assert zero_pages(content).left_out(EVERYTHING) == page(7)


def test_the_memory_can_be_unmapped_after_a_look() -> None:
    view = memoryview(memory())
    ZeroPages(view, len(view)).left_out(EVERYTHING)
    view.release()
