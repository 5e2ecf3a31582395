"""`rdma-pin-all` on: everything that holds data is locked on both sides before the bulk round.

QEMU pins every RAM block whole, touched or not, and never looks for zero pages under this policy; here only memory that
holds data is locked, so a half-used guest costs half.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import ClassVar

from workers.ranges import EMPTY, RangeTable
from workers.registration.registrar import Registrar
from workers.transports.contract import Writes

#: Bytes per request, and so the largest region. All requests are sent before the first answer is waited for, so larger
#: ones would save no time; nor are 16,384 regions for 1 TiB many, where cards have room for millions. But they would
#: cost: pyverbs holds the interpreter while it registers, 0.2 to 0.35 s for 64 MiB that must be populated first, in
#: which neither a cancel nor a heartbeat is heard.
_REQUEST = 64 << 20


class PinAll:
    """Lock first, then write."""

    kind: ClassVar[str] = "pin-all"
    takes_back: ClassVar[bool] = False

    def __init__(self, registrar: Registrar, chunk_size: int) -> None:
        self._registrar = registrar
        self._chunk_size = chunk_size

    def prepare(self, batches: Iterable[RangeTable]) -> list[RangeTable]:
        """Survey all batches and register all of them: the destination locks the first while we survey the next."""
        surveyed, unasked = [], EMPTY
        for batch in batches:
            surveyed.append(batch)
            unasked |= batch
            if unasked.size >= _REQUEST:
                self._ask(unasked)
                unasked = EMPTY
        self._register(unasked)
        return surveyed

    def writes(self, batches: Iterable[RangeTable]) -> Iterator[Writes]:
        """Batch by batch; what came to hold data after `prepare` is registered as it is met."""
        for batch in batches:
            self._register(batch)
            yield self._registrar.writes(batch, self._chunk_size)

    def _ask(self, ranges: RangeTable) -> None:
        for part in self._registrar.missing(ranges).batches(_REQUEST, _REQUEST):
            self._registrar.request(part)

    def _register(self, ranges: RangeTable) -> None:
        self._ask(ranges)
        while self._registrar.unsettled:
            self._registrar.settle()
