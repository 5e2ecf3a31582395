"""Write requests made once and reused: a linked list that is posted by its tail, whatever its length.

The device has copied a request when `post_send` returns, so one list serves all queue pairs of an endpoint. It stays
linked for good: n writes take its last n requests, which end where the list ends. Every n-th from the end is signalled,
so the last one always is.
"""

from __future__ import annotations

from typing import Any

from workers.transports.contract import Writes
from workers.transports.verbs.library import Verbs, own_sge

#: Requests handed to the device at a time: beyond 16 a longer list saves nothing more per request (measured).
LENGTH = 64
#: One completion for so many writes: polling one costs as much as posting a write.
SIGNAL_EVERY = 16


class WriteRequests:
    """LENGTH linked RDMA WRITE requests. They are the device library's structures: for one thread at a time."""

    def __init__(self, verbs: Verbs) -> None:
        flags = verbs.enums
        template = verbs.SGE(0, 0, 0)
        self._works = [
            verbs.SendWR(
                num_sge=1,
                sg=[template],
                opcode=flags.IBV_WR_RDMA_WRITE,
                send_flags=0 if left % SIGNAL_EVERY else flags.IBV_SEND_SIGNALED,
            )
            for left in reversed(range(LENGTH))
        ]
        template.close()
        self._sges = [own_sge(verbs, work) for work in self._works]
        for work, following in zip(self._works[:-1], self._works[1:], strict=True):
            work.next_wr = following

    def fill(self, base: int, writes: Writes, local_keys: list[int], first_id: int, id_step: int) -> Any:
        """The head of a list of 1 to LENGTH writes, to be posted at once.

        `base` is the address of guest memory 0 in this process; ids count up from `first_id` by `id_step`.
        """
        works, sges = self._works[-len(writes) :], self._sges[-len(writes) :]
        rows = zip(
            works,
            sges,
            (writes.start + base).tolist(),
            writes.length.tolist(),
            local_keys,
            writes.key.tolist(),
            writes.remote_address.tolist(),
            strict=True,
        )
        number = first_id
        for work, sge, address, length, local_key, remote_key, remote_address in rows:
            sge.addr, sge.length, sge.lkey = address, length, local_key
            work.wr_id = number
            work.set_wr_rdma(remote_key, remote_address)
            number += id_step
        return works[0]


class ScratchRequest:
    """A single request between the two scratch pages: the first write, and the read that follows writes."""

    def __init__(self, verbs: Verbs, local: Any) -> None:
        self._verbs = verbs
        self._local = local
        template = verbs.SGE(0, 0, 0)
        self._work = verbs.SendWR(num_sge=1, sg=[template], send_flags=verbs.enums.IBV_SEND_SIGNALED)
        template.close()
        self._sge = own_sge(verbs, self._work)

    def write(self, size: int, remote: tuple[int, int], number: int) -> Any:
        """A write of `size` bytes to (address, key)."""
        return self._fill(self._verbs.enums.IBV_WR_RDMA_WRITE, size, remote, number)

    def read(self, size: int, remote: tuple[int, int], number: int) -> Any:
        """A read of `size` bytes from (address, key)."""
        return self._fill(self._verbs.enums.IBV_WR_RDMA_READ, size, remote, number)

    def _fill(self, opcode: int, size: int, remote: tuple[int, int], number: int) -> Any:
        address, key = remote
        self._sge.addr, self._sge.length, self._sge.lkey = self._local.buf, size, self._local.lkey
        self._work.opcode, self._work.wr_id = opcode, number
        self._work.set_wr_rdma(key, address)
        return self._work
