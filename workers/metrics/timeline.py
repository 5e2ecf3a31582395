"""Spans of one migration on one side: what each stage took, by one monotonic clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Timeline:
    """Named spans in seconds. A span that is entered twice adds up; `elapsed` counts from the making."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._began = clock()
        self.seconds: dict[str, float] = {}

    @property
    def elapsed(self) -> float:
        """Seconds since this timeline was made."""
        return self._clock() - self._began

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Count the body's time under `name`, also when it fails."""
        began = self._clock()
        try:
            yield
        finally:
            self.add(name, self._clock() - began)

    def add(self, name: str, seconds: float) -> None:
        """Count `seconds` under `name`."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
