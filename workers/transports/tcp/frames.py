"""What travels on an open connection, and how writes are cut into it. Pure: bytes and arrays in, bytes and arrays out.

Every frame starts with the same 16 bytes, big-endian, as is everything here:

    magic "DW" | version u8 | kind u8 | rows u32 | size u64

    WRITES        source → destination, data      the rows, then `size` bytes of guest memory, row after row
                                                  row: address u64 | length u32 | key u32
    ACKNOWLEDGED  destination → source, data      size = bytes of this connection that lie in guest memory, ever
    MESSAGE       both ways, control              `size` bytes of a control message
    REFUSED       destination → source, control   `size` bytes of text: the write that was refused, and why
    FAILED        both ways, control              `size` bytes of text: why the sender gives up
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from itertools import chain, zip_longest
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from config.errors import PeerError
from workers.transports.contract import MAX_MESSAGE, Writes
from workers.transports.stripes import STRIPE, cut, joined, select_rows

VERSION = 1
_MAGIC = b"DW"
_HEADER = struct.Struct(">2sBBIQ")
HEADER_SIZE = _HEADER.size

_ROW = np.dtype([("address", ">u8"), ("length", ">u4"), ("key", ">u4")])
#: Header and table take one of the 1024 places (IOV_MAX) of a scatter/gather call, so that a frame is one system call.
MAX_ROWS = 1023
#: Bytes of guest memory in one frame: 1023 scattered pages, or four whole chunks; the unit of acknowledging.
MAX_FRAME = 4 << 20
#: From this length on a row is sent by sendfile, below it by gathering: a call per row pays only when the row is long.
LARGE_ROW = 64 << 10
MAX_TEXT = 1024


class Kind(IntEnum):
    """What a frame is. 0 is invalid, so that zeroed bytes never look like one."""

    WRITES = 1
    ACKNOWLEDGED = 2
    MESSAGE = 3
    REFUSED = 4
    FAILED = 5


_LIMITS = {
    # kind: (fewest rows, most rows, least size, largest size)
    Kind.WRITES: (1, MAX_ROWS, 1, MAX_FRAME),
    Kind.ACKNOWLEDGED: (0, 0, 1, (1 << 63) - 1),
    Kind.MESSAGE: (0, 0, 0, MAX_MESSAGE),
    Kind.REFUSED: (0, 0, 0, MAX_TEXT),
    Kind.FAILED: (0, 0, 0, MAX_TEXT),
}


class Header(NamedTuple):
    """The start of a frame."""

    kind: Kind
    rows: int
    size: int

    def encode(self) -> bytes:
        """16 bytes."""
        return _HEADER.pack(_MAGIC, VERSION, self.kind, self.rows, self.size)


def decode_header(data: bytes, *expected: Kind) -> Header:
    """Read a header of one of the `expected` kinds. Raises PeerError when it is another, or out of its limits."""
    magic, version, kind, rows, size = _HEADER.unpack(data)
    if magic != _MAGIC or version != VERSION:
        raise PeerError(
            f"the other side sent a frame of an unknown form ({data[:4].hex()}): check that its version is ours"
        )
    if kind not in expected:
        raise PeerError(f"the other side sent a frame of kind {kind} on a connection that carries none of these")
    fewest, most, least_size, most_size = _LIMITS[Kind(kind)]
    if not (fewest <= rows <= most and least_size <= size <= most_size):
        raise PeerError(
            f"the other side sent a {Kind(kind).name} frame of {rows} rows and {size} bytes, which no frame has"
        )
    return Header(Kind(kind), rows, size)


def encode_text(kind: Kind, text: str) -> bytes:
    """A REFUSED or FAILED frame."""
    data = text.encode()[:MAX_TEXT]
    return Header(kind, 0, len(data)).encode() + data


class Table(NamedTuple):
    """The rows of a WRITES frame, as received. Shapes: three arrays of equal length; bytes."""

    address: npt.NDArray[np.int64]
    length: npt.NDArray[np.int64]
    key: npt.NDArray[np.int64]


def table_size(rows: int) -> int:
    """Bytes that a table of so many rows takes on the wire."""
    return rows * _ROW.itemsize


def decode_table(data: bytes, size: int) -> Table:
    """Read the table of a frame of `size` bytes. Raises PeerError when the rows do not add up to it."""
    rows = np.frombuffer(data, _ROW)
    # An address of 2^63 or more turns negative here, and no region starts below 0.
    table = Table(*(rows[name].astype(np.int64) for name in ("address", "length", "key")))
    if int(table.length.min()) < 1 or int(table.length.sum()) != size:
        raise PeerError(f"the other side sent a frame of {size} bytes whose rows add up to another number")
    return table


@dataclass(frozen=True, slots=True)
class Frame:
    """A WRITES frame to be sent. Shapes: `start` and `length` say where the bytes lie in the local guest memory."""

    channel: int
    head: bytes
    start: npt.NDArray[np.int64]
    length: npt.NDArray[np.int64]
    size: int
    large: bool


def plan(writes: Writes, channels: int, limit: int = MAX_FRAME) -> list[Frame]:
    """Cut a batch into frames of at most `limit` bytes (≥ STRIPE), the channels taking turns.

    Rows that are neighbours on both sides become one; none crosses a stripe.
    """
    rows = cut(joined(writes))
    channel = rows.remote_address // STRIPE % channels
    large = rows.length >= LARGE_ROW
    lanes = []
    for number in range(channels):
        mine = channel == number
        parts = (
            _frames(number, select_rows(rows, mine & large), limit),
            _frames(number, select_rows(rows, mine & ~large), limit),
        )
        lanes.append(chain(*parts))
    return [frame for turn in zip_longest(*lanes) for frame in turn if frame is not None]


def _frames(channel: int, rows: Writes, limit: int) -> Iterator[Frame]:
    total = np.cumsum(rows.length)
    at = 0
    while at < len(rows):
        done = int(total[at - 1]) if at else 0
        upto = min(at + MAX_ROWS, int(np.searchsorted(total, done + limit, "right")))
        size = int(total[upto - 1]) - done
        part = np.s_[at:upto]
        table = np.empty(upto - at, _ROW)
        table["address"], table["length"], table["key"] = rows.remote_address[part], rows.length[part], rows.key[part]
        head = Header(Kind.WRITES, upto - at, size).encode() + table.tobytes()
        yield Frame(channel, head, rows.start[part], rows.length[part], size, bool(rows.length[at] >= LARGE_ROW))
        at = upto
