"""How writes are cut into frames, and which bytes are taken for a frame."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.errors import PeerError
from workers.transports.contract import MAX_MESSAGE, Writes
from workers.transports.stripes import STRIPE
from workers.transports.tcp.frames import (
    HEADER_SIZE,
    LARGE_ROW,
    MAX_FRAME,
    MAX_ROWS,
    Frame,
    Header,
    Kind,
    decode_header,
    decode_table,
    encode_text,
    plan,
    table_size,
)

PAGE = 4096


def batch(rows: list[tuple[int, int, int, int]]) -> Writes:
    """From (start, length, remote address, key)."""
    start, length, address, key = np.array(rows, np.int64).reshape(-1, 4).T
    return Writes(start, length, address, key.astype(np.uint64))


def unpacked(frame: Frame) -> list[tuple[int, int, int, int]]:
    header = decode_header(frame.head[:HEADER_SIZE], Kind.WRITES)
    table = decode_table(frame.head[HEADER_SIZE:], header.size)
    assert len(table.key) == header.rows == len(frame.start)
    assert frame.length.tolist() == table.length.tolist()
    columns = (frame.start, table.length, table.address, table.key)
    return list(zip(*(column.tolist() for column in columns), strict=True))


@st.composite
def batches(draw: st.DrawFn) -> list[tuple[int, int, int, int]]:
    """Rows in ascending order, some touching; in places the remote side lies elsewhere."""
    rows, at = [], 0
    for _ in range(draw(st.integers(1, 30))):
        at += draw(st.sampled_from([0, 0, 1, PAGE, STRIPE]))
        length = draw(st.sampled_from([1, PAGE, 16 * PAGE, STRIPE, 3 * STRIPE + 5]))
        rows.append((at, length, at + draw(st.sampled_from([0, 0, 0, 1 << 40])), draw(st.sampled_from([1, 2**32 - 1]))))
        at += length
    return rows


@given(batches(), st.integers(1, 4), st.sampled_from([STRIPE, MAX_FRAME]))
def test_frames_carry_every_byte_once_to_where_it_belongs(
    rows: list[tuple[int, int, int, int]], channels: int, limit: int
) -> None:
    frames = plan(batch(rows), channels, limit)
    carried = sorted(row for frame in frames for row in unpacked(frame))
    pieces = [carried[0]]
    for start, length, address, key in carried[1:]:
        before = pieces[-1]
        if (before[0] + before[1], before[2] + before[1], before[3]) == (start, address, key):
            pieces[-1] = (before[0], before[1] + length, before[2], key)
        else:
            pieces.append((start, length, address, key))
    expected = [rows[0]]
    for start, length, address, key in rows[1:]:
        before = expected[-1]
        if (before[0] + before[1], before[2] + before[1], before[3]) == (start, address, key):
            expected[-1] = (before[0], before[1] + length, before[2], key)
        else:
            expected.append((start, length, address, key))
    assert pieces == sorted(expected)


@given(batches(), st.integers(1, 4))
def test_one_address_always_takes_one_channel(rows: list[tuple[int, int, int, int]], channels: int) -> None:
    for frame in plan(batch(rows), channels):
        for _, length, address, _ in unpacked(frame):
            assert {address // STRIPE % channels, (address + length - 1) // STRIPE % channels} == {frame.channel}
            assert address // STRIPE == (address + length - 1) // STRIPE


@given(batches(), st.integers(1, 4))
def test_frames_keep_their_limits_and_do_not_mix_long_with_short_rows(
    rows: list[tuple[int, int, int, int]], channels: int
) -> None:
    for frame in plan(batch(rows), channels, STRIPE):
        assert frame.size == int(frame.length.sum()) <= STRIPE
        assert len(frame.start) <= MAX_ROWS
        assert ((frame.length >= LARGE_ROW) == frame.large).all()


def test_scattered_pages_go_many_to_a_frame_and_the_channels_take_turns() -> None:
    frames = plan(batch([(at, PAGE, at, 1) for at in range(0, 64 * STRIPE, 2 * PAGE)]), 2)
    assert [frame.channel for frame in frames] == [0, 1] * (len(frames) // 2)
    assert len(frames) == 10  # 8192 pages in frames of at most 1023, a half on each channel


def test_neighbours_become_one_row_only_if_they_are_neighbours_on_both_sides_under_one_key() -> None:
    rows = [(0, PAGE, 0, 1), (PAGE, PAGE, PAGE, 1), (2 * PAGE, PAGE, 2 * PAGE, 2), (3 * PAGE, PAGE, 9 * PAGE, 2)]
    (frame,) = plan(batch(rows), 1)
    assert unpacked(frame) == [(0, 2 * PAGE, 0, 1), (2 * PAGE, PAGE, 2 * PAGE, 2), (3 * PAGE, PAGE, 9 * PAGE, 2)]


def test_headers_survive_the_wire() -> None:
    for header in (Header(Kind.WRITES, 3, 12288), Header(Kind.ACKNOWLEDGED, 0, 1 << 50), Header(Kind.MESSAGE, 0, 0)):
        assert decode_header(header.encode(), header.kind) == header


@pytest.mark.parametrize(
    "data",
    [
        bytes(HEADER_SIZE),
        struct.pack(">2sBBIQ", b"WD", 1, 3, 0, 0),
        struct.pack(">2sBBIQ", b"DW", 0, 3, 0, 0),
        struct.pack(">2sBBIQ", b"DW", 2, 3, 0, 0),
        struct.pack(">2sBBIQ", b"DW", 1, 0, 0, 0),
        struct.pack(">2sBBIQ", b"DW", 1, 6, 0, 0),
        struct.pack(">2sBBIQ", b"DW", 1, 3, 1, 0),
        struct.pack(">2sBBIQ", b"DW", 1, 3, 0, MAX_MESSAGE + 1),
        struct.pack(">2sBBIQ", b"DW", 1, 1, 0, 1),
        struct.pack(">2sBBIQ", b"DW", 1, 1, MAX_ROWS + 1, 1),
        struct.pack(">2sBBIQ", b"DW", 1, 1, 1, MAX_FRAME + 1),
        struct.pack(">2sBBIQ", b"DW", 1, 2, 0, 1 << 63),
        struct.pack(">2sBBIQ", b"DW", 1, 4, 0, 1025),
    ],
)
def test_what_is_not_a_frame_is_refused(data: bytes) -> None:
    with pytest.raises(PeerError):
        decode_header(data, *Kind)


def test_a_frame_that_is_legal_elsewhere_is_refused_here() -> None:
    with pytest.raises(PeerError, match="kind 3"):
        decode_header(Header(Kind.MESSAGE, 0, 5).encode(), Kind.WRITES)


def test_a_table_must_add_up() -> None:
    table = struct.pack(">QIIQII", 0, PAGE, 1, 8192, PAGE, 1)
    assert len(table) == table_size(2)
    assert decode_table(table, 2 * PAGE).address.tolist() == [0, 8192]
    with pytest.raises(PeerError):
        decode_table(table, 2 * PAGE + 1)


def test_a_reason_is_cut_to_what_its_frame_may_hold() -> None:
    data = encode_text(Kind.REFUSED, "ü" * 5000)
    assert decode_header(data[:HEADER_SIZE], Kind.REFUSED).size == len(data) - HEADER_SIZE == 1024
