"""What a transport counts of its own work, for the worker's metrics. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from workers.metrics.tally import Tally

#: Upper bounds, in seconds: from a few requests on a fast fabric to a frame that waits for a slow destination.
WORK_SECONDS = (0.00001, 0.00003, 0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)


@dataclass(slots=True)
class Figures:
    """Of one endpoint at the source, from its making on."""

    #: Seconds from the posting of writes that travel together (verbs: a list of requests, tcp: a frame) until the
    #: destination had confirmed the last one of them.
    work: Tally = field(default_factory=lambda: Tally(WORK_SECONDS))
    #: Most bytes that were ever in flight.
    peak: int = 0
    #: Completions that failed, by their status; a transport without any has none.
    failed: Counter[str] = field(default_factory=Counter)
    #: Packets that had to be sent again; None: it cannot tell.
    resent: int | None = None

    def posted(self, in_flight: int) -> None:
        """So many bytes are in flight now."""
        self.peak = max(self.peak, in_flight)

    def to_json(self) -> dict[str, Any]:
        """For the mover's status."""
        return {
            "work": self.work.to_json(),
            "in_flight_peak": self.peak,
            "failed": dict(self.failed),
            "resent": self.resent,
        }
