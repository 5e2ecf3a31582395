"""`rdma-pin-all` off, the default: chunks are registered as the bulk round reaches them, ahead of the writes.

QEMU pays one blocking round trip and two registrations in series per MiB (migration/rdma.c). Here requests for the next
batches are under way while the current one is written, both sides register at the same time, and the link never waits
unless registering is slower than writing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import ClassVar

from workers.ranges import RangeTable
from workers.registration.registrar import Registrar
from workers.transports.contract import Writes

#: Batches asked for beyond the one that is written. Three covered the round trip on soft-RoCE and on loopback TCP.
_AHEAD = 3


class Dynamic:
    """Register ahead, write behind."""

    kind: ClassVar[str] = "dynamic"
    takes_back: ClassVar[bool] = False

    def __init__(self, registrar: Registrar, chunk_size: int) -> None:
        self._registrar = registrar
        self._chunk_size = chunk_size

    def prepare(self, batches: Iterable[RangeTable]) -> Iterable[RangeTable]:
        """Nothing is done before its turn."""
        return batches

    def writes(self, batches: Iterable[RangeTable]) -> Iterator[Writes]:
        """A sliding window over the batches: asked for at its front, yielded at its back."""
        window: deque[RangeTable] = deque()
        for batch in batches:
            missing = self._registrar.missing(batch)
            if missing:
                self._registrar.request(missing)
            window.append(batch)
            if len(window) > _AHEAD:
                yield self._ready(window.popleft())
        while window:
            yield self._ready(window.popleft())

    def _ready(self, batch: RangeTable) -> Writes:
        while self._registrar.pending(batch):
            self._registrar.settle()
        return self._registrar.writes(batch, self._chunk_size)
