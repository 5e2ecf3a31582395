"""The algebra of range tables, against sets of bytes-as-pages and against literal bitmaps."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.ranges import EMPTY, PAGE_SIZE, RangeTable

pages = st.sets(st.integers(0, 60))


def table(numbers: set[int]) -> RangeTable:
    return RangeTable.from_pages(np.array(sorted(numbers), np.int64))


def numbers(ranges: RangeTable) -> set[int]:
    return set(ranges.pages().tolist())


@given(pages, pages)
def test_the_algebra_is_that_of_sets(a: set[int], b: set[int]) -> None:
    assert numbers(table(a) | table(b)) == a | b
    assert numbers(table(a) & table(b)) == a & b
    assert numbers(table(a) - table(b)) == a - b


@given(pages, pages)
def test_equal_memory_is_an_equal_table_however_it_was_made(a: set[int], b: set[int]) -> None:
    joined = table(a) | table(b)
    assert joined == RangeTable([(page * PAGE_SIZE, (page + 1) * PAGE_SIZE) for page in a | b])
    assert hash(joined) == hash(table(a | b))
    bounds = joined.bounds
    assert (bounds[1:, 0] > bounds[:-1, 1]).all(), "touching ranges are one"


@pytest.mark.parametrize(
    ("bits", "expected"),
    [
        ("", []),
        ("0000", []),
        ("1", [(0, 1)]),
        ("0110", [(1, 3)]),
        ("1010", [(0, 1), (2, 3)]),
        ("1101", [(0, 2), (3, 4)]),
        ("1111", [(0, 4)]),
    ],
)
def test_bitmaps_become_runs(bits: str, expected: list[tuple[int, int]]) -> None:
    ranges = RangeTable.from_bitmap(np.array([bit == "1" for bit in bits], np.bool_), PAGE_SIZE)
    assert [tuple(r) for r in ranges] == [(a * PAGE_SIZE, b * PAGE_SIZE) for a, b in expected]


@given(pages, st.integers(1, 9))
def test_splitting_cuts_at_every_multiple_and_loses_nothing(a: set[int], unit_pages: int) -> None:
    unit = unit_pages * PAGE_SIZE
    pieces = table(a).split(unit)
    assert RangeTable(pieces) == table(a)
    assert (pieces[:, 0] // unit == (pieces[:, 1] - 1) // unit).all()


@given(pages, st.sets(st.integers(0, 61)))
def test_cutting_cuts_at_the_points_and_loses_nothing(a: set[int], at: set[int]) -> None:
    points = np.array(sorted(at), np.int64) * PAGE_SIZE
    pieces = table(a).cut(points)
    assert RangeTable(pieces) == table(a)
    assert (pieces[:, 1] > pieces[:, 0]).all()
    assert not any(((start < points) & (points < end)).any() for start, end in pieces.tolist())


@given(pages, st.integers(1, 5), st.integers(1, 5))
def test_batches_are_bounded_and_cover_everything_once(a: set[int], unit_pages: int, units: int) -> None:
    unit = unit_pages * PAGE_SIZE
    batches = list(table(a).batches(unit * units, unit))
    assert all(0 < batch.size <= unit * units for batch in batches)
    assert sum(batch.size for batch in batches) == table(a).size
    union = EMPTY
    for batch in batches:
        union |= batch
    assert union == table(a)


@given(pages)
def test_the_wire_form_round_trips(a: set[int]) -> None:
    assert RangeTable.from_bytes(table(a).to_bytes()) == table(a)


@pytest.mark.parametrize(
    "damage",
    [b"\0" * 15, RangeTable([(0, 4096)]).to_bytes() * 2, (5).to_bytes(8) + (5).to_bytes(8), b"\xff" * 16],
)
def test_a_damaged_wire_form_is_refused(damage: bytes) -> None:
    with pytest.raises(ValueError, match="range"):
        RangeTable.from_bytes(damage)


def test_growing_to_a_unit_and_clipping() -> None:
    grown = RangeTable([(5 * PAGE_SIZE, 6 * PAGE_SIZE)]).aligned(4 * PAGE_SIZE)
    assert [tuple(r) for r in grown] == [(4 * PAGE_SIZE, 8 * PAGE_SIZE)]
    assert grown.clipped(7 * PAGE_SIZE).size == 3 * PAGE_SIZE


def test_a_range_that_ends_before_it_starts_is_refused() -> None:
    with pytest.raises(ValueError, match="start"):
        RangeTable([(8192, 4096)])
