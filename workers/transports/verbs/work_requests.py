"""RDMA requests as the device's library takes them, filled a list at a time.

`struct ibv_send_wr` and `struct ibv_sge` of libibverbs' public interface (infiniband/verbs.h), which every program that
posts was compiled with; each request carries its scatter list of one entry behind itself. numpy fills a list at the
cost of 0.1 µs a request; pyverbs' setters, one request after the other, took 0.42 (measured).

The device has copied a request when it was posted, so one list serves all queue pairs that a thread posts to. It stays
linked for good: n writes take its last n requests, which end where the list ends. Every n-th from the end is signalled,
so the last one always is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from workers.transports.contract import Writes

#: Requests handed to the device at a time: filling a list costs 12 µs, however short it is.
LENGTH = 256
#: One completion for so many writes: polling one costs as much as posting a write.
SIGNAL_EVERY = 16

#: As in infiniband/verbs.h: IBV_WR_RDMA_WRITE, IBV_WR_RDMA_READ, IBV_SEND_SIGNALED.
_WRITE, _READ, _SIGNALED = 0, 4, 2
#: struct ibv_send_wr ends at 128; the scatter list's entry is put there.
_SGE = 128
_FIELDS: dict[str, tuple[type[np.generic], int]] = {
    "wr_id": (np.uint64, 0),
    "next": (np.uint64, 8),
    "sg_list": (np.uint64, 16),
    "num_sge": (np.int32, 24),
    "opcode": (np.int32, 28),
    "send_flags": (np.uint32, 32),
    "remote_addr": (np.uint64, 40),
    "rkey": (np.uint32, 48),
    "addr": (np.uint64, _SGE),
    "length": (np.uint32, _SGE + 8),
    "lkey": (np.uint32, _SGE + 12),
}
REQUEST = np.dtype(
    {
        "names": list(_FIELDS),
        "formats": [kind for kind, _ in _FIELDS.values()],
        "offsets": [offset for _, offset in _FIELDS.values()],
        "itemsize": _SGE + 16,
    }
)


class WriteRequests:
    """LENGTH linked RDMA WRITE requests, for one thread at a time."""

    def __init__(self) -> None:
        self.requests = _linked(LENGTH)
        left = np.arange(LENGTH)[::-1]
        self.requests["send_flags"] = np.where(left % SIGNAL_EVERY, 0, _SIGNALED)

    def fill(self, base: int, writes: Writes, local_keys: npt.NDArray[np.uint32], first_id: int, id_step: int) -> int:
        """Where the list of 1 to LENGTH writes begins, to be posted before the next is filled.

        `base` is the address of guest memory 0 in this process; ids count up from `first_id` by `id_step`.
        """
        count = len(writes)
        rows = self.requests[LENGTH - count :]
        rows["wr_id"] = np.arange(first_id, first_id + count * id_step, id_step)
        rows["addr"] = writes.start + base
        rows["length"] = writes.length
        rows["lkey"] = local_keys
        rows["rkey"] = writes.key
        rows["remote_addr"] = writes.remote_address
        return int(rows.ctypes.data)


class ScratchRequest:
    """A single request between the two scratch pages: the first write, and the read that follows writes."""

    def __init__(self, local_address: int, local_key: int) -> None:
        self.request = _linked(1)
        self.request["addr"], self.request["lkey"] = local_address, local_key
        self.request["send_flags"] = _SIGNALED

    def write(self, size: int, remote: tuple[int, int], number: int) -> int:
        """Where a write of `size` bytes to (address, key) lies."""
        return self._fill(_WRITE, size, remote, number)

    def read(self, size: int, remote: tuple[int, int], number: int) -> int:
        """Where a read of `size` bytes from (address, key) lies."""
        return self._fill(_READ, size, remote, number)

    def _fill(self, opcode: int, size: int, remote: tuple[int, int], number: int) -> int:
        one = self.request
        one["opcode"], one["length"], one["wr_id"] = opcode, size, number
        one["remote_addr"], one["rkey"] = remote
        return int(one.ctypes.data)


def _linked(count: int) -> npt.NDArray[Any]:
    """Writes of one entry each, every one pointing at the next, the last at none."""
    made = np.zeros(count, REQUEST)
    addresses = made.ctypes.data + np.arange(count, dtype=np.uint64) * REQUEST.itemsize
    made["opcode"], made["num_sge"] = _WRITE, 1
    made["sg_list"] = addresses + _SGE
    made["next"][:-1] = addresses[1:]
    return made
