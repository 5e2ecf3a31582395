"""When each stage of one migration was on one side, and what it took, by one monotonic clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Timeline:
    """Named spans and moments, in seconds since the making.

    A span that is entered twice adds up in `seconds`; `began` tells when it was entered last. What was only added up
    has no beginning.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._made = clock()
        self.seconds: dict[str, float] = {}
        self.began: dict[str, float] = {}
        self.moments: dict[str, float] = {}

    @property
    def elapsed(self) -> float:
        """Seconds since this timeline was made."""
        return self._clock() - self._made

    @contextmanager
    def span(self, name: str) -> Iterator[float]:
        """Count the body's time under `name`, also when it fails. Gives when it began."""
        began = self.elapsed
        try:
            yield began
        finally:
            self.add(name, self.elapsed - began, began)

    def add(self, name: str, seconds: float, began: float | None = None) -> None:
        """Count `seconds` under `name`; `began` where they lie in one piece, in seconds since the making."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        if began is not None:
            self.began[name] = began

    def mark(self, name: str) -> None:
        """It is now that this happens; what happened before under this name stays."""
        self.moments.setdefault(name, self.elapsed)
