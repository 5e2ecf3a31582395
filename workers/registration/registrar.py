"""Registering on both sides: asks the destination, locks the source's own side, remembers what may be written where."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from config.errors import MessageError
from workers.conversation import Conversation
from workers.protocol import MessageType, decode_regions
from workers.ranges import EMPTY, RangeTable
from workers.transports.contract import Endpoint, RemoteRegion, Writes

#: What is registered is rounded out to this many bytes: scattered pages share a region instead of costing one each
#: (0.2 ms per region on soft-RoCE), and at most this much untouched memory is locked at each edge.
GRANULE = 64 << 10


class Registrar:
    """The source's end of REGISTER_REQUEST / REGISTER_RESULT, for one attempt.

    Requests are answered in order; several may be under way. `registered` covers both sides.
    """

    def __init__(
        self, talk: Conversation, endpoint: Endpoint, memory_size: int, timeout: float, clock: Callable[[], float]
    ) -> None:
        self._talk = talk
        self._endpoint = endpoint
        self._memory_size = memory_size
        self._timeout = timeout
        self._clock = clock
        self._asked: deque[RangeTable] = deque()
        self._pending = EMPTY
        self._regions = np.zeros((0, 4), np.uint64)
        self.registered = EMPTY
        #: Seconds that the caller waited for registration, on either side: what a policy costs.
        self.waited = 0.0

    def missing(self, ranges: RangeTable) -> RangeTable:
        """What of `ranges` is neither registered nor asked for, rounded out to the granule."""
        return ranges.aligned(GRANULE).clipped(self._memory_size) - self.registered - self._pending

    def request(self, ranges: RangeTable) -> None:
        """Ask the destination for these (one region a range); it starts at once, the caller goes on."""
        self._talk.say(MessageType.REGISTER_REQUEST, blob=ranges.to_bytes())
        self._asked.append(ranges)
        self._pending |= ranges

    def settle(self) -> None:
        """Lock the source's side of the oldest request, while the destination is at its own, and take its answer."""
        began = self._clock()
        ranges = self._asked.popleft()
        self._endpoint.register(ranges)
        answer = decode_regions(self._talk.expect([MessageType.REGISTER_RESULT], self._timeout).blob)
        if [(region.start, region.end) for region in answer] != [tuple(bounds) for bounds in ranges.bounds.tolist()]:
            raise MessageError("the destination registered other memory than it was asked for")
        self._remember(answer)
        self._pending -= ranges
        self.registered |= ranges
        self.waited += self._clock() - began

    @property
    def unsettled(self) -> int:
        """Requests without an answer yet."""
        return len(self._asked)

    def pending(self, ranges: RangeTable) -> bool:
        """Whether part of `ranges` waits for an answer."""
        return bool(self._asked) and (ranges & self._pending).size > 0

    def writes(self, ranges: RangeTable, chunk_size: int) -> Writes:
        """Writes for registered `ranges`, cut at chunks and at region borders."""
        starts, ends = self._regions[:, 0].astype(np.int64), self._regions[:, 1].astype(np.int64)
        # Only the borders within reach: all of them, for each batch, cost a 1 TiB guest more than its wire does.
        low, high = (int(ranges.bounds[0, 0]), int(ranges.bounds[-1, 1])) if ranges else (0, 0)
        near = slice(np.searchsorted(ends, low), np.searchsorted(starts, high))
        chunks = np.arange(low // chunk_size * chunk_size, high, chunk_size)
        borders = np.unique(np.concatenate([starts[near], ends[near], chunks]))
        pieces = ranges.cut(borders)
        region = np.searchsorted(starts, pieces[:, 0], "right") - 1
        if len(pieces) and ((region < 0).any() or (pieces[:, 1] > ends[region]).any()):
            raise AssertionError("a policy yielded memory that is not registered")
        address = self._regions[region, 2].astype(np.int64) + pieces[:, 0] - starts[region]
        return Writes(pieces[:, 0], pieces[:, 1] - pieces[:, 0], address, self._regions[region, 3])

    def _remember(self, regions: list[RemoteRegion]) -> None:
        rows: npt.NDArray[np.uint64] = np.array(
            [(region.start, region.end, region.address, region.key) for region in regions], np.uint64
        ).reshape(-1, 4)
        merged = np.concatenate([self._regions, rows])
        self._regions = merged[np.argsort(merged[:, 0], kind="stable")]
