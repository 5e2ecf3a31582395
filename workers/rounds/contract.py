"""The facts of a round, as everything that judges or reports them sees them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

#: Kinds of rounds, and the phase in which each is sent.
PHASES: Mapping[str, str] = {"bulk": "bulk", "dirty": "rounds", "final": "downtime"}


@dataclass(frozen=True, slots=True)
class Round:
    """One finished round. Units: bytes, seconds."""

    index: int
    #: `bulk` (all that holds data), `dirty` (what was written since, the guest runs), `final` (the guest is paused).
    kind: str
    #: What was to be sent: the dirty table's size, zero pages included.
    bytes: int
    #: What went over the wire.
    sent: int
    #: From the first byte surveyed until the destination had digested (the last round: received) the last one.
    seconds: float
    #: Of what was not sent, what was found zero; None: all of it.
    zero: int | None = None
    #: Of what was sent, what went as differences to what the destination has (QEMU's xbzrle); None: nothing can.
    delta: int | None = None

    @property
    def rate(self) -> float:
        """Bytes settled per second, zero pages included: what the next round can expect."""
        return self.bytes / self.seconds if self.seconds > 0 else 0.0

    def to_json(self) -> dict[str, Any]:
        """For status, history and the demo's table. What is None is not there."""
        return {name: value for name, value in asdict(self).items() if value is not None}
