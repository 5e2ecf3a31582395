"""What every transport does: RDMA's shape, whatever carries it.

The life of a pair of endpoints, the same on every kind:

    destination = open_tcp(ram, …)                source = open_tcp(ram, …)
    destination.offer() ────── pairing ────────►  source.connect(offer)
    destination.connect(offer) ◄── pairing ─────  source.offer()
    destination.register(ranges) → regions        source.register(ranges)        (a device pins them: a real cost)
    ────── regions, in a control message ──────►  source.post(writes); source.flush()
    destination.receive() ◄── control messages ─► source.send(…)

Rules:
- Writes are one-sided: the destination learns of them only by a control message. Of two writes to one address the later
  one stays; otherwise they land in any order. Control messages and writes travel apart; `flush()` first when a message
  speaks of writes. Control messages keep their order and are never lost while the connection lives.
- The destination refuses a write outside what is registered under that key: nothing is written, the connection ends,
  the source's next call raises RemoteAccessError. The destination's next call raises PeerError.
- An end of the connection (peer died, link lost) raises PeerLostError from the next call on either side; `receive()`
  first gives out what the peer had said before it left.
- `close()` releases everything: threads, sockets, locked memory. Twice is harmless; it never blocks for long.
- One thread uses an endpoint at a time, except that `abort()` and `in_flight()` may come from any.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from workers.ranges import RangeTable
from workers.transports.figures import Figures

#: A control message's largest size, in bytes: a dirty table of 8 GiB with every second page (16 bytes a range).
MAX_MESSAGE = 16 << 20


@dataclass(frozen=True, slots=True)
class RemoteRegion:
    """Guest memory [start, end) that the destination registered, and what a writer must name to reach it.

    `address` is what the transport calls the first byte (verbs: a virtual address; tcp: the ram_addr itself);
    `key` is the remote key, never 0.
    """

    start: int
    end: int
    address: int
    key: int


@dataclass(frozen=True, slots=True)
class Writes:
    """Writes to post, one a row: guest memory [start, start+length) goes to `remote_address` under `key`.

    Shapes: four arrays of equal length n; bytes. No row crosses a chunk, a RAM block or a remote region.
    """

    start: npt.NDArray[np.int64]
    length: npt.NDArray[np.int64]
    remote_address: npt.NDArray[np.int64]
    key: npt.NDArray[np.uint64]

    @property
    def size(self) -> int:
        """Bytes to be written."""
        return int(self.length.sum())

    def __len__(self) -> int:
        return len(self.start)


class Endpoint(Protocol):
    """One side of the connection of one migration."""

    kind: ClassVar[str]

    def offer(self) -> dict[str, Any]:
        """What the peer must know to connect, as JSON: addresses and a token, or GID, LID, QPN, PSN, MTU."""
        ...

    def connect(self, peer: Mapping[str, Any], timeout: float) -> None:
        """Meet the peer whose offer this is, within `timeout` seconds.

        Raises MessageError (the offer is malformed), PeerError (wrong token or certificate),
        PeerLostError (nobody there in time).
        """
        ...

    def register(self, ranges: RangeTable) -> list[RemoteRegion]:
        """Make these ranges regions, one each, in order; at the destination the peer may then write them.

        verbs populates and pins them, for the device reaches them by their physical addresses; tcp populates and locks
        them only under `rdma-pin-all`, and else notes them. Ranges that overlap an existing region are the caller's
        mistake. Raises MemoryLockError; then nothing of this call stays registered.
        """
        ...

    def deregister(self, regions: list[RemoteRegion]) -> None:
        """Forget the keys of these regions, unlock what was locked. Never called while writes to them are in flight."""
        ...

    def post(self, writes: Writes) -> None:
        """Start these writes; returns when all are handed over, blocking while too many bytes are in flight."""
        ...

    def in_flight(self) -> int:
        """Bytes posted that the destination has not yet confirmed."""
        ...

    def flush(self, timeout: float) -> None:
        """Wait until every posted write lies in the destination's memory. PeerLostError after `timeout` seconds."""
        ...

    def send(self, message: bytes) -> None:
        """Queue one control message of at most MAX_MESSAGE bytes, in order."""
        ...

    def receive(self, timeout: float) -> bytes | None:
        """The next control message, or None when none came within `timeout` seconds (0: look once)."""
        ...

    def figures(self) -> Figures:
        """What it has counted so far at the source; never raises, and is of use until `close`."""
        ...

    def abort(self) -> None:
        """Make every current and later call on this endpoint raise PeerLostError soon. Callable from any thread."""
        ...

    def close(self) -> None:
        """Release everything; harmless when repeated."""
        ...
