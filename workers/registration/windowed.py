"""`pin-budget`: registered ahead as `dynamic` does, but never more than a budget on either side. Over tcp none of it is
locked: the budget still bounds what the source may write to at a time, and costs its round trips.

What was not written to for the longest time goes first. QEMU has a place for this in its code and never fills it
(migration/rdma.c, `unregistrations`): whatever it registered stays locked until the migration ends.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from typing import ClassVar

import numpy as np

from workers.ranges import RangeTable
from workers.registration.registrar import GRANULE, Registrar
from workers.transports.contract import Writes

#: Parts asked for beyond the one that is written, as `dynamic` does.
_AHEAD = 3
#: What one part may keep locked is this fraction of the budget. One in flight, three ahead and the one to be asked for
#: are five parts; three eighths are left to what is hot, so that room can always be made without waiting for a write.
_PARTS = 8


class Windowed:
    """Register ahead, write behind, release what lies longest."""

    kind: ClassVar[str] = "windowed"
    takes_back: ClassVar[bool] = True

    def __init__(self, registrar: Registrar, chunk_size: int, budget: int) -> None:
        """`budget` in bytes, at least 8 granules; chunks larger than an eighth of it are cut."""
        self._registrar = registrar
        self._chunk_size = chunk_size
        self._budget = budget
        #: Region → the number of the part that used it last; least recently used first.
        self._used: OrderedDict[int, int] = OrderedDict()
        self._asked = 0
        #: Parts up to this number lie in the destination's memory.
        self._confirmed = 0

    def prepare(self, batches: Iterable[RangeTable]) -> Iterable[RangeTable]:
        """Nothing is done before its turn."""
        return batches

    def writes(self, batches: Iterable[RangeTable]) -> Iterator[Writes]:
        """The batches in parts that fit, through a sliding window: asked for at its front, yielded at its back."""
        self._confirmed = self._asked  # the round before was flushed
        window: deque[RangeTable] = deque()
        for part in self._parts(batches):
            self._ask(part)
            window.append(part)
            if len(window) > _AHEAD:
                yield self._ready(window.popleft())
                # The caller is back: it has posted that part, and flushed the one before it.
                self._confirmed = self._asked - len(window) - 1
        while window:
            yield self._ready(window.popleft())

    def _parts(self, batches: Iterable[RangeTable]) -> Iterator[RangeTable]:
        """Cut so that each part keeps at most its fraction locked, the whole of each region that it touches included.

        Scattered pages make the difference: 4096 of them are 16 MiB to write and 256 MiB of granules.
        """
        limit = self._budget // _PARTS
        for batch in batches:
            rest = batch
            while rest:
                granules, locked = self._registrar.footprint(rest)
                fitting = int(np.searchsorted(np.cumsum(locked), limit, "right"))
                if fitting == len(granules):
                    yield rest
                    break
                cut = int(granules[fitting]) * GRANULE
                yield rest.clipped(cut)
                rest -= RangeTable([(0, cut)])

    def _ask(self, part: RangeTable) -> None:
        self._asked += 1
        self._use(part)  # before room is made, so that it is not made of what this part needs
        missing = self._registrar.missing(part)
        if missing:
            self._make_room(missing.size)
            self._registrar.request(missing)
            self._use(missing)

    def _use(self, ranges: RangeTable) -> None:
        for region in self._registrar.regions(ranges).tolist():
            self._used[region] = self._asked
            self._used.move_to_end(region)

    def _make_room(self, size: int) -> None:
        """Release as much as `size` bytes more need. The link is busy with the last part meanwhile."""
        excess = self._registrar.held + size - self._budget
        gone = []
        while excess > 0:
            region, part = self._used.popitem(last=False)
            if part > self._confirmed:
                raise AssertionError("a region that may still be written to is in the way of the next")
            gone.append(region)
            excess -= self._registrar.size(region)
        if gone:
            self._registrar.release(gone)

    def _ready(self, part: RangeTable) -> Writes:
        while self._registrar.pending(part):
            self._registrar.settle()
        return self._registrar.writes(part, self._chunk_size)
