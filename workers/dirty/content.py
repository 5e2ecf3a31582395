"""The tracker for any kernel: compare what this side holds with what the destination holds, by hash.

Comparing the guest's memory with an earlier hash *of itself* would not do. A page that goes A → B → A between two
looks has the same hash at both, but the copy made in between may have caught B; a lock bit or a reference count in
guest memory does this all day. What was copied is known only where it was copied to: so `collect` compares with the
hashes that the destination reports (`held`), which no such page escapes.

Without `held` the only honest answer to "what may differ" is everything that ever held data. A running guest then
never gets ahead, and the collect after the pause makes it a stop-and-copy: slow, and right.

While the guest runs, a table is what differed at the moment of reading. The collect that must not miss anything is
the one with the guest paused (`reads_everything`), after all earlier copies have landed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import xxhash

from config.errors import HostError
from workers.dirty.mappings import TrackedProcess
from workers.dirty.trial import trial
from workers.ram import Ram
from workers.ranges import RangeTable

#: Bytes under one hash. 64 KiB: 160 ms per GiB, against 240 at 4 KiB (measured, one core); 128 KiB of hashes per GiB.
CHUNK = 64 << 10

#: Bytes read at a time: small enough to stay in a core's cache between reading and hashing.
_READ = 1 << 20

Digests = npt.NDArray[np.uint64]
"""One xxh3_64 for each CHUNK of guest memory, chunk 0 first; the last may cover less."""


def digests(ram: Ram) -> Digests:
    """The hashes of all of `ram`; a hole counts as the zeros that it reads as, and is not populated."""
    found = np.full(-(-ram.size // CHUNK), _zeros(CHUNK), np.uint64)
    if ram.size % CHUNK:
        found[-1] = _zeros(ram.size % CHUNK)
    buffer = memoryview(bytearray(_READ))
    for start, end in ram.populated().aligned(CHUNK):
        for low in range(start, min(end, ram.size), _READ):
            size = min(low + _READ, end, ram.size) - low
            _read(ram, low, buffer[:size])
            found[low // CHUNK : -(-(low + size) // CHUNK)] = [
                xxhash.xxh3_64_intdigest(buffer[at : min(at + CHUNK, size)]) for at in range(0, size, CHUNK)
            ]
    return found


class ContentTracker:
    """Compares hashes with the destination's; see the module."""

    kind: ClassVar[str] = "content"
    reads_everything: ClassVar[bool] = True
    sees_kernel_writes: ClassVar[bool] = True

    def __init__(
        self, guest: TrackedProcess, ram: Ram, held: Callable[[], Callable[[], Digests]] | None = None
    ) -> None:
        """`held` asks for `digests` of the destination's memory, once all that was sent has landed there.

        What it returns waits for the answer: both sides read their memory at the same time.
        """
        del guest  # its memory is all that matters here
        self._ram = ram
        self._held = held
        self._populated: RangeTable | None = None

    @staticmethod
    def self_test() -> None:
        """Try it on memory of our own."""
        trial(ContentTracker)

    def start(self) -> None:
        """Note what holds data now: should it be discarded later, the destination has it still."""
        self._populated = self._ram.populated()

    def collect(self) -> RangeTable:
        """What the destination does not hold, in chunks of 64 KiB; without `held`, all that ever held data."""
        if self._populated is None:
            raise HostError("the dirty tracker is closed: start a new one")
        if self._held is None:
            self._populated |= self._ram.populated()
            return self._populated
        answer = self._held()
        mine = digests(self._ram)
        return RangeTable.from_bitmap(mine != answer(), CHUNK) & RangeTable([(0, self._ram.size)])

    def close(self) -> None:
        """Nothing was done to the guest. Harmless when repeated."""
        self._populated = None


def _zeros(size: int) -> int:
    return xxhash.xxh3_64_intdigest(bytes(size))


def _read(ram: Ram, start: int, into: memoryview) -> None:
    """Read guest memory through its files: unlike a look through the mapping, this leaves holes holes."""
    at = 0
    for fd, offset, size in ram.extents(start, start + len(into)):
        done = 0
        while done < size:
            count = os.preadv(fd, [into[at + done : at + size]], offset + done)
            if not count:
                raise HostError("a RAM file became shorter while it was read: is the guest up?")
            done += count
        at += size
