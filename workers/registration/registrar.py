"""Registering on both sides: asks the destination, does the source's own side, remembers what may be written where."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from config.errors import MessageError
from workers.conversation import Conversation
from workers.protocol import MessageType, decode_regions
from workers.ranges import RangeTable, ascending
from workers.transports.contract import Endpoint, RemoteRegion, Writes

#: What is registered is rounded out to this many bytes: scattered pages share a region instead of costing one each
#: (0.2 ms per region on soft-RoCE), and at most this much untouched memory is registered at each edge.
GRANULE = 64 << 10

_START, _END, _ADDRESS, _KEY = range(4)

Regions = npt.NDArray[np.int32]
"""Numbers of regions, as the Registrar gives them out; 0 is none. A number is used again after its region's release."""


class Registrar:
    """The source's end of REGISTER_REQUEST / REGISTER_RESULT / RELEASE, for one attempt: one account for both sides.

    Requests are answered in order; several may be under way. Nothing here costs more when much is registered: which
    region a granule lies in is looked up (4 bytes a granule, 64 MiB for a guest of 1 TiB, populated as it is used).
    """

    def __init__(
        self,
        talk: Conversation,
        endpoint: Endpoint,
        memory_size: int,
        timeout: float,
        clock: Callable[[], float],
        account: Callable[[int, int], None] = lambda *_: None,
    ) -> None:
        """`account(now, most)` is told after each change what is registered, and the most that ever was, in bytes."""
        self._talk = talk
        self._endpoint = endpoint
        self._memory_size = memory_size
        self._timeout = timeout
        self._clock = clock
        self._account = account
        self._asked: deque[tuple[RangeTable, list[int]]] = deque()
        self._region_of = np.zeros(-(-memory_size // GRANULE), np.int32)
        #: Row n: start, end, address, key of region n at the destination; the key is 0 until it has answered.
        self._regions = np.zeros((64, 4), np.uint64)
        self._unused: list[int] = list(range(63, 0, -1))
        self._mine: dict[int, RemoteRegion] = {}
        #: Bytes registered on both sides; whether they are locked as well is the transport's concern.
        self.registered = 0
        self.most = 0
        #: What is registered, and what was asked for.
        self.held = 0
        #: Seconds that the caller waited for registration, on either side: what a policy costs.
        self.waited = 0.0

    def missing(self, ranges: RangeTable) -> RangeTable:
        """What of `ranges` is neither registered nor asked for, rounded out to the granule."""
        granules = ranges.pages(GRANULE)
        return RangeTable.from_pages(granules[self._region_of[granules] == 0], GRANULE).clipped(self._memory_size)

    def regions(self, ranges: RangeTable) -> Regions:
        """The regions, registered or asked for, that `ranges` lie in; each once."""
        found = self._region_of[ranges.pages(GRANULE)]
        found = ascending(found[np.diff(found, prepend=-1) != 0])
        return found[found > 0]

    def request(self, ranges: RangeTable) -> None:
        """Ask the destination for these, which are `missing` (one region a range); it starts at once, we go on."""
        self._talk.say(MessageType.REGISTER_REQUEST, blob=ranges.to_bytes())
        asked = [self._number(start, end) for start, end in ranges]
        self._asked.append((ranges, asked))
        self.held += ranges.size

    def settle(self) -> None:
        """Do the source's side of the oldest request, while the destination is at its own, and take its answer."""
        began = self._clock()
        ranges, numbers = self._asked.popleft()
        self._mine.update(zip(numbers, self._endpoint.register(ranges), strict=True))
        answer = decode_regions(self._talk.expect([MessageType.REGISTER_RESULT], self._timeout).blob)
        if [(region.start, region.end) for region in answer] != [tuple(bounds) for bounds in ranges.bounds.tolist()]:
            raise MessageError("the destination registered other memory than it was asked for")
        self._regions[numbers, _ADDRESS] = [region.address for region in answer]
        self._regions[numbers, _KEY] = [region.key for region in answer]
        self._count(ranges.size)
        self.waited += self._clock() - began

    def release(self, numbers: list[int]) -> None:
        """Deregister these on both sides: registered, and no write to them unconfirmed.

        No answer is waited for. Control messages keep their order, so the destination has released them before it
        serves the next request.
        """
        bounds = RangeTable(self._regions[numbers, :_ADDRESS].astype(np.int64))
        self._talk.say(MessageType.RELEASE, blob=bounds.to_bytes())
        self._endpoint.deregister([self._mine.pop(number) for number in numbers])
        self._region_of[bounds.pages(GRANULE)] = 0
        self._unused += numbers
        self.held -= bounds.size
        self._count(-bounds.size)

    def _count(self, size: int) -> None:
        self.registered += size
        self.most = max(self.most, self.registered)
        self._account(self.registered, self.most)

    @property
    def unsettled(self) -> int:
        """Requests without an answer yet."""
        return len(self._asked)

    def pending(self, ranges: RangeTable) -> bool:
        """Whether part of `ranges` waits for an answer."""
        return bool(self._asked) and bool((self._regions[self.regions(ranges), _KEY] == 0).any())

    def size(self, number: int) -> int:
        """Bytes of one region."""
        return int(self._regions[number, _END] - self._regions[number, _START])

    def footprint(self, ranges: RangeTable) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The granules of `ranges`, and the bytes that are registered for the sake of each: the whole region that it is
        the first here to lie in, the granule itself where nothing is registered, else nothing. Two arrays of one shape.
        """
        granules = ranges.pages(GRANULE)
        region = self._region_of[granules]
        first = np.diff(region, prepend=-1) != 0
        whole = (self._regions[region, _END] - self._regions[region, _START]).astype(np.int64)
        return granules, np.where(region == 0, GRANULE, np.where(first, whole, 0))

    def writes(self, ranges: RangeTable, chunk_size: int) -> Writes:
        """Writes for registered `ranges`, cut at chunks and at region borders."""
        bounds = self._regions[self.regions(ranges), :_ADDRESS].astype(np.int64).ravel()
        pieces = ranges.cut(ascending(np.concatenate([bounds, ranges.split(chunk_size)[:, 0]])))
        rows = self._regions[self._region_of[pieces[:, 0] // GRANULE]]
        if (rows[:, _KEY] == 0).any():
            raise AssertionError("a policy yielded memory that is not registered")
        address = rows[:, _ADDRESS].astype(np.int64) + pieces[:, 0] - rows[:, _START].astype(np.int64)
        return Writes(pieces[:, 0], pieces[:, 1] - pieces[:, 0], address, rows[:, _KEY])

    def _number(self, start: int, end: int) -> int:
        if not self._unused:
            size = len(self._regions)
            self._regions = np.concatenate([self._regions, np.zeros_like(self._regions)])
            self._unused = list(range(2 * size - 1, size - 1, -1))
        number = self._unused.pop()
        self._regions[number] = (start, end, 0, 0)
        self._region_of[start // GRANULE : -(-end // GRANULE)] = number
        return number
