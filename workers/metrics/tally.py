"""A histogram that a mover keeps and a worker adds up. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any


class Tally:
    """How often a value fell into each bucket, and the sum of all. `bounds` are upper bounds, rising."""

    __slots__ = ("_bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        #: One entry for each bound, and one for what lies above the last.
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count `value` once."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    def to_json(self) -> dict[str, Any]:
        """For `add`, maybe in another process."""
        return {"counts": list(self.counts), "sum": self.sum}

    def add(self, said: Mapping[str, Any]) -> None:
        """Add what another tally said. One with other bounds (another release) or damaged is left out."""
        counts, total = said.get("counts"), said.get("sum")
        if not isinstance(counts, list) or len(counts) != len(self.counts) or not isinstance(total, int | float):
            return
        if all(isinstance(count, int) and count >= 0 for count in counts):
            self.counts = [mine + theirs for mine, theirs in zip(self.counts, counts, strict=True)]
            self.sum += total

    def cumulative(self) -> list[tuple[str, float]]:
        """As Prometheus has it: (upper bound, values up to it), the last one "+Inf"."""
        found, so_far = [], 0
        for bound, count in zip([*map(str, map(float, self._bounds)), "+Inf"], self.counts, strict=True):
            so_far += count
            found.append((bound, float(so_far)))
        return found
