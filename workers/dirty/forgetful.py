"""Fault injection: a tracker that forgets what was written last.

The control of every check on guest memory: a migration with this tracker must be caught as corrupt, or the check
cannot fail. Used only where the environment says DROVEWAY_FAULT=drop-final-dirty.
"""

from __future__ import annotations

from typing import ClassVar

from workers.dirty.contract import DirtyTracker
from workers.ranges import EMPTY, RangeTable


class Forgetful:
    """Hands on each table one call late, so that the last one, collected with the guest paused, is never seen."""

    kind: ClassVar[str] = "forgetful"
    reads_everything: ClassVar[bool] = False

    def __init__(self, tracker: DirtyTracker) -> None:
        self._tracker = tracker
        self._withheld = EMPTY

    def start(self) -> None:
        """As the wrapped tracker does."""
        self._tracker.start()

    def collect(self) -> RangeTable:
        """What the wrapped tracker collected at the previous call."""
        late, self._withheld = self._withheld, self._tracker.collect()
        return late

    def close(self) -> None:
        """As the wrapped tracker does."""
        self._tracker.close()
