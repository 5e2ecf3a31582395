"""What every dirty tracker does: see each page that the guest writes between two calls.

The one promise: a byte of guest memory that changes after `collect()` (or `start()`) returned is inside a table
returned by a later `collect()`. More may be reported, never less. Discarding clean memory (a balloon's hole punch) is
no write: the guest has given those bytes up, and they may go unreported.
"""

from __future__ import annotations

from typing import ClassVar, Protocol

from workers.guests.contract import Guest
from workers.ram import Ram
from workers.ranges import RangeTable


class DirtyTracker(Protocol):
    """Tracks one guest of this host. Nothing that it did to the guest outlives `close()` or the worker's death."""

    kind: ClassVar[str]
    #: True when the guest must be paused for the collect after which nothing may be missed anyway *and* cannot be
    #: tracked while it runs more cheaply than by reading all of its memory (the `content` tracker).
    reads_everything: ClassVar[bool]

    def start(self) -> None:
        """Protect everything: from here on each first write to a page is seen. Raises HostError."""
        ...

    def collect(self) -> RangeTable:
        """What was written since the last call (or `start`), protected again in the same atomic step.

        Callable while the guest runs or is paused. The caller copies the memory *after* this returns.
        """
        ...

    def close(self) -> None:
        """Stop tracking; the guest goes on untouched. Harmless when repeated."""
        ...


class TrackerFactory(Protocol):
    """A kind of tracker: how to make one, and whether it works on this machine."""

    kind: str
    #: False when a write that the kernel does for the guest (KVM, or read(2) into its RAM) would fail while tracked.
    sees_kernel_writes: bool

    def __call__(self, guest: Guest, ram: Ram) -> DirtyTracker:
        """A tracker of `guest`, whose memory is mapped here as `ram`; not started yet."""
        ...

    @staticmethod
    def self_test() -> None:
        """Try it on memory of our own. Raises HostError with the reason when it does not work or misses a write."""
        ...
