"""A tracker that returns what it was told to: for tests of the loops around it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from workers.ranges import EMPTY, RangeTable


class ScriptedTracker:
    """Returns the given tables, one a call, then empty ones; `calls` records what was called."""

    kind: ClassVar[str] = "scripted"
    reads_everything: ClassVar[bool] = False

    def __init__(self, tables: Iterable[RangeTable] = ()) -> None:
        self._tables = iter(tables)
        self.calls: list[str] = []

    def start(self) -> None:
        """Note the call."""
        self.calls.append("start")

    def collect(self) -> RangeTable:
        """The next table of the script."""
        self.calls.append("collect")
        return next(self._tables, EMPTY)

    def close(self) -> None:
        """Note the call."""
        self.calls.append("close")
