"""Writes dealt out over several connections or queue pairs so that what goes to one address stays in order. Pure."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from workers.transports.contract import Writes

#: Guest memory is dealt out in stripes of this many bytes. All writes to one address take one connection, so that they
#: land in the order in which they were posted, as on one RDMA queue pair.
STRIPE = 1 << 20


def select_rows(writes: Writes, index: slice | npt.NDArray[np.bool_] | npt.NDArray[np.intp]) -> Writes:
    """Some of the rows, in their order."""
    return Writes(writes.start[index], writes.length[index], writes.remote_address[index], writes.key[index])


def joined(writes: Writes) -> Writes:
    """The same writes with rows that are neighbours on both sides made one."""
    if len(writes) < 2:
        return writes
    start_next, address_next = writes.start + writes.length, writes.remote_address + writes.length
    apart = (
        (start_next[:-1] != writes.start[1:])
        | (address_next[:-1] != writes.remote_address[1:])
        | (writes.key[:-1] != writes.key[1:])
    )
    heads = np.flatnonzero(np.concatenate(([True], apart)))
    rows = select_rows(writes, heads)
    return Writes(rows.start, np.add.reduceat(writes.length, heads), rows.remote_address, rows.key)


def cut(writes: Writes) -> Writes:
    """Cut at every stripe boundary of the remote address."""
    address, end = writes.remote_address, writes.remote_address + writes.length
    first = address // STRIPE
    count = -(-end // STRIPE) - first
    if (count == 1).all():
        return writes
    row = np.repeat(np.arange(len(writes)), count)
    stripe = np.arange(len(row)) - np.repeat(np.cumsum(count) - count - first, count)
    low = np.maximum(address[row], stripe * STRIPE)
    high = np.minimum(end[row], (stripe + 1) * STRIPE)
    return Writes(writes.start[row] + low - address[row], high - low, low, writes.key[row])
