"""What a destination registered and under which keys: the check that stands between a peer's write and guest memory.

Pure bookkeeping for the transports whose hardware does not do it (tcp, stub); a verbs device checks for itself.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterable
from itertools import repeat

import numpy as np
import numpy.typing as npt

from config.errors import RemoteAccessError
from workers.ranges import PageRange
from workers.transports.contract import RemoteRegion

#: Keys fit the 32 bits of an ibverbs rkey, so that every transport's tables look alike.
KEY_BITS = 32
_GONE = -1


class Regions:
    """Registered regions by key. Keys are random, never 0, and never used twice in the life of an endpoint."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # A key keeps its slot after it is withdrawn: that is how none is handed out twice, and how a late write is told
        # from a forged one. 16 bytes and a dict entry for each, which a window over 1 TiB in 1 MiB chunks can afford.
        self._slots: dict[int, int] = {}
        self._bounds = np.full((64, 2), _GONE, np.int64)

    def add(self, ranges: Iterable[PageRange]) -> list[RemoteRegion]:
        """Open these ranges to writes, each under a new key; the address of a region is its `start`."""
        with self._lock:
            return [self._add(found) for found in ranges]

    def _add(self, found: PageRange) -> RemoteRegion:
        key = 0
        while not key or key in self._slots:
            key = secrets.randbits(KEY_BITS)
        slot = len(self._slots)
        if slot == len(self._bounds):
            self._bounds = np.concatenate([self._bounds, np.full_like(self._bounds, _GONE)])
        self._bounds[slot] = found
        self._slots[key] = slot
        return RemoteRegion(found.start, found.end, found.start, key)

    def remove(self, regions: Iterable[RemoteRegion]) -> None:
        """Withdraw these regions; a write under one of their keys is refused from now on."""
        with self._lock:
            for region in regions:
                slot = self._slots.get(region.key)
                if slot is not None:
                    self._bounds[slot] = _GONE

    def check(
        self, address: npt.NDArray[np.int64], length: npt.NDArray[np.int64], key: npt.NDArray[np.integer]
    ) -> None:
        """Pass only when every row lies inside the region of its key. Raises RemoteAccessError naming a bad one."""
        with self._lock:
            slots = np.fromiter(map(self._slots.get, key.tolist(), repeat(_GONE)), np.int64, len(key))
            bounds = self._bounds[slots]
        # Compared without adding, so that no address near 2^63 wraps round into a region.
        bad = (slots == _GONE) | (length <= 0) | (address < bounds[:, 0]) | (length > bounds[:, 1] - address)
        if bad.any():
            row = int(np.argmax(bad))
            raise RemoteAccessError(
                _reason(int(address[row]), int(length[row]), int(key[row]), int(slots[row]), bounds[row])
            )


def _reason(address: int, length: int, key: int, slot: int, bounds: npt.NDArray[np.int64]) -> str:
    write = f"a write of {length} bytes to address {address:#x}"
    if slot == _GONE:
        return f"{write} names the key {key:#x}, which was never given out"
    if bounds[0] == _GONE:
        return f"{write} names the key {key:#x}, whose region was deregistered"
    return f"{write} leaves the region [{int(bounds[0]):#x}, {int(bounds[1]):#x}) of the key {key:#x}"
