"""Guest memory populated and locked in this process (mlock): `rdma-pin-all` where no device pins the pages."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterable, Iterator

from config.errors import MemoryLockError
from workers.ram import Ram
from workers.ranges import PageRange
from workers.registration.limits import lock_limit, locked_memory

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.munlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]

#: One mlock call covers at most this much, so that an abort need not wait until a whole guest is populated: fresh pages
#: take 1.5 to 4.6 s per GiB (measured, Linux 6.18, a virtual machine with 2 cores).
_STEP = 128 << 20


class MemoryLock:
    """The locked parts of one `Ram`. Locks do not nest: ranges that overlap are the caller's mistake."""

    def __init__(self, ram: Ram) -> None:
        self._ram = ram
        self._held: set[PageRange] = set()

    @property
    def size(self) -> int:
        """Bytes locked now."""
        return sum(found.size for found in self._held)

    def add(self, ranges: Iterable[PageRange], still_wanted: Callable[[], None]) -> None:
        """Populate and lock; `still_wanted` is called between steps and may raise to stop.

        Raises MemoryLockError (and whatever `still_wanted` raises); then nothing of this call stays locked.
        """
        wanted = list(ranges)
        asked = sum(found.size for found in wanted)
        # Refused before the first page is populated: pages of a RAM file cannot be given back once they exist.
        limit, held = lock_limit(), locked_memory()
        if limit is not None and held + asked > limit:
            raise _too_small(asked)
        done: list[PageRange] = []
        try:
            for piece in _pieces(wanted):
                still_wanted()
                done.append(piece)
                if _libc.mlock(self._ram.address + piece.start, piece.size):
                    raise _too_small(asked, ctypes.get_errno(), self._ram.places)
        except BaseException:
            self._unlock(done)
            raise
        self._held.update(wanted)

    def remove(self, ranges: Iterable[PageRange]) -> None:
        """Unlock; the pages stay populated."""
        gone = [found for found in ranges if found in self._held]
        self._unlock(gone)
        self._held.difference_update(gone)

    def close(self) -> None:
        """Unlock everything."""
        self.remove(list(self._held))

    def _unlock(self, ranges: Iterable[PageRange]) -> None:
        if self._ram.address:  # an unmapped Ram took its locks with it
            for found in ranges:
                _libc.munlock(self._ram.address + found.start, found.size)


def _pieces(ranges: Iterable[PageRange]) -> Iterator[PageRange]:
    for found in ranges:
        for start in range(found.start, found.end, _STEP):
            yield PageRange(start, min(start + _STEP, found.end))


def _too_small(asked: int, errno: int = 0, places: str = "") -> MemoryLockError:
    limit, held = lock_limit(), locked_memory()
    if limit is not None and held + asked > limit:
        return MemoryLockError(
            f"{asked} bytes of guest memory cannot be locked: RLIMIT_MEMLOCK is {limit} bytes, of which this worker "
            f"already holds {held}; raise the limit (LimitMEMLOCK= of the service) or turn rdma-pin-all off"
        )
    return MemoryLockError(
        f"{asked} bytes of guest memory cannot be locked ({os.strerror(errno)}) though the limit would allow it, with "
        f"{held} bytes held: free memory on this host and in {places}, or raise vm.max_map_count"
    )
